"""The JSON of every read command: stable names, plain values, sizes in bytes, times in ISO 8601."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.merge.recipe import SIGNS, STRATEGIES

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from chorale.events import Completion
    from chorale.v1 import adapter_registry_pb2 as registry_pb
    from chorale.v1 import admin_pb2 as admin_pb
    from chorale.v1 import fleet_pb2 as fleet_pb

# PageOwnerKind's numbers; the module of its names is not imported before a call is made.
_OWNER_KINDS = {1: "free", 2: "adapter", 3: "sequence", 4: "prefix"}
_PREDICTION_KINDS = {1: "follow", 2: "warm_up", 3: "rate"}
_STRATEGIES = dict(enumerate(STRATEGIES, 1))
_SIGNS = dict(enumerate(SIGNS, 1))
_TIERS = {1: "host", 2: "pool"}


def adapter(value: registry_pb.Adapter) -> dict[str, Any]:
    return {
        "name": value.name,
        "current_version": value.current_version,
        "versions": [version(one) for one in value.versions],
        "aliases": [alias(one) for one in value.aliases],
    }


def registered(
    value: registry_pb.RegisterAdapterResponse | registry_pb.MergeAdaptersResponse,
) -> dict[str, Any]:
    """created: whether the version is new."""
    return {
        "created": value.created,
        "version": version(value.version),
        "adapter": adapter(value.adapter),
    }


def version(value: registry_pb.AdapterVersion) -> dict[str, Any]:
    return {
        "version": value.version,
        "digest": value.digest,
        "source": value.source,
        "base_model": value.base_model,
        "rank": value.rank,
        "target_modules": list(value.target_modules),
        "size_bytes": value.size_bytes,
        "created_at": _time(value.created_at),
        "labels": dict(sorted(value.labels.items())),
        "private": value.private,
        "merge": merge(value.merge) if value.HasField("merge") else None,
        "invocation_tokens": list(value.invocation_tokens),
    }


def merge(value: registry_pb.Merge) -> dict[str, Any]:
    """density, majority_sign and seed are null where they mean nothing to the strategy."""
    return {
        "strategy": _STRATEGIES.get(value.strategy, "unknown"),
        "components": [
            {
                "adapter": each.adapter,
                "weight": each.weight,
                "digest": each.digest,
                "source": each.source,
            }
            for each in value.components
        ],
        "density": value.density if value.HasField("density") else None,
        "majority_sign": _SIGNS.get(value.majority_sign),
        "seed": value.seed if value.HasField("seed") else None,
    }


def alias(value: registry_pb.Alias) -> dict[str, Any]:
    """A version of 0 follows the adapter's current one. targets: none where there is only one."""
    return {
        "name": value.name,
        "adapter": value.adapter,
        "version": value.version,
        "targets": [
            {"adapter": each.adapter, "version": each.version, "weight": each.weight}
            for each in value.targets
        ],
    }


def base_model(value: registry_pb.BaseModel) -> dict[str, Any]:
    return {
        "name": value.name,
        "fingerprint": value.fingerprint,
        "num_layers": value.num_layers,
        "vocab_size": value.vocab_size,
        "max_context_tokens": value.max_context_tokens,
    }


def data_plane(value: fleet_pb.DataPlane) -> dict[str, Any]:
    load, residency = value.load, value.residency
    return {
        "data_plane_id": value.data_plane_id,
        "endpoint": value.endpoint,
        "base_model": value.base_model,
        "num_running": load.num_running,
        "num_waiting": load.num_waiting,
        "max_running": load.max_running,
        "num_pages": load.num_pages,
        "num_available_pages": load.num_available_pages,
        "num_generated_tokens": load.num_generated_tokens,
        "num_pool_adapters": len(residency.pool_digests),
        "num_host_adapters": len(residency.host_digests),
        "num_disk_adapters": len(residency.disk_digests),
        "num_loading": load.num_loading,
        "num_waiting_pins": load.num_waiting_pins,
        "tiers": [tier(each) for each in load.tiers],
        "load_counts": [load_count(each) for each in load.load_counts],
        "prefetches": prefetches(load.prefetches),
        "last_heartbeat_at": _time(value.last_heartbeat_at),
    }


def prefetches(value: fleet_pb.Prefetches) -> dict[str, Any]:
    return {
        "num_hits": value.num_hits,
        "num_late": value.num_late,
        "late_s": value.late.ToNanoseconds() / 1e9,
        "wasted_bytes": value.wasted_bytes,
        "num_failed": value.num_failed,
        "num_refused": value.num_refused,
        "num_asked": value.num_asked,
    }


def tier(value: fleet_pb.TierCounters) -> dict[str, Any]:
    return {
        "tier": value.tier,
        "num_adapters": value.num_adapters,
        "size_bytes": value.size_bytes,
        "max_bytes": value.max_bytes,
        "num_hits": value.num_hits,
        "num_misses": value.num_misses,
        "num_evictions": value.num_evictions,
        "num_damaged": value.num_damaged,
    }


def load_count(value: fleet_pb.LoadCount) -> dict[str, Any]:
    return {
        "origin": value.origin,
        "outcome": value.outcome,
        "num_loads": value.num_loads,
        "size_bytes": value.size_bytes,
        "queue_s": value.queue_s,
        "read_s": value.read_s,
        "parse_s": value.parse_s,
        "build_s": value.build_s,
    }


def demand(value: fleet_pb.ListDemandResponse) -> dict[str, Any]:
    return {
        "predicting": value.predicting,
        "adapters": [_adapter_demand(each) for each in value.adapters],
        "predictions": [_prediction(each) for each in value.predictions],
        "scores": [
            {
                "kind": _PREDICTION_KINDS.get(each.kind, "unknown"),
                "num_made": each.num_made,
                "num_hits": each.num_hits,
                "num_late": each.num_late,
                "num_misses": each.num_misses,
                "asked_bytes": each.asked_bytes,
                "precision": each.precision,
            }
            for each in value.scores
        ],
    }


def _adapter_demand(value: fleet_pb.AdapterDemand) -> dict[str, Any]:
    return {
        "name": value.name,
        "digest": value.digest,
        "base_model": value.base_model,
        "rates": [
            {
                "half_life_s": each.half_life.ToNanoseconds() / 1e9,
                "requests_per_s": each.requests_per_s,
            }
            for each in value.rates
        ],
        "followers": [
            {"name": each.name, "digest": each.digest, "share": each.share}
            for each in value.followers
        ],
    }


def _prediction(value: fleet_pb.Prediction) -> dict[str, Any]:
    return {
        "data_plane_id": value.data_plane_id,
        "name": value.name,
        "digest": value.digest,
        "kind": _PREDICTION_KINDS.get(value.kind, "unknown"),
        "tier": _TIERS.get(value.tier, "unknown"),
        "size_bytes": value.size_bytes,
        "age_s": value.age.ToNanoseconds() / 1e9,
        "left_s": value.left.ToNanoseconds() / 1e9,
        "hit": value.hit,
    }


def adapter_load(value: admin_pb.AdapterLoad) -> dict[str, Any]:
    return {
        "from": value.tier,
        "origin": value.origin,
        "size_bytes": value.size_bytes,
        "queue_s": value.queue_s,
        "read_s": value.read_s,
        "parse_s": value.parse_s,
        "build_s": value.build_s,
        "copy_s": value.copy_s,
        "age_s": value.age_s,
        "reason": value.reason,
        "message": value.message,
    }


def adapter_loading(value: admin_pb.AdapterLoading) -> dict[str, Any]:
    return {
        "from": value.origin,
        "state": value.state,
        "received_bytes": value.received_bytes,
        "total_bytes": value.total_bytes,
        "bytes_per_s": value.bytes_per_s,
        "waited_s": value.waited_s,
    }


def pool(value: admin_pb.GetPoolResponse) -> dict[str, Any]:
    return {
        "data_plane_id": value.data_plane_id,
        "num_pages": value.num_pages,
        "page_bytes": value.page_bytes,
        "num_used_pages": value.num_used_pages,
        "runs": [
            {
                "owner_kind": _OWNER_KINDS.get(run.owner_kind, "unknown"),
                "owner_id": run.owner_id,
                "first_page": run.first_page,
                "num_pages": run.num_pages,
            }
            for run in value.runs
        ],
        "problem": value.problem,
    }


def completion(value: Completion) -> dict[str, Any]:
    accepted, finished = value.accepted, value.finished
    timings = finished.timings
    return {
        "request_id": accepted.request_id,
        "model": accepted.model,
        "adapter_version": accepted.adapter_version,
        "adapter_digest": accepted.adapter_digest,
        "data_plane_id": accepted.data_plane_id,
        "seed": accepted.seed,
        "text": value.text,
        "token_ids": list(value.token_ids),
        "logprobs": [
            {"logprob": one.chosen.logprob, "top": {str(t.token_id): t.logprob for t in one.top}}
            for one in value.logprobs
        ],
        "prompt_logprobs": [
            {
                "token_id": one.chosen.token_id,
                "text": one.chosen.text,
                "logprob": one.chosen.logprob if at else None,  # nothing stands before the first
                "top": {str(t.token_id): t.logprob for t in one.top},
            }
            for at, one in enumerate(value.prompt_logprobs)
        ],
        "finish_reason": finished.finish_reason,
        "stop_string": finished.stop_string,
        "stop_token_id": finished.stop_token_id,
        "num_prompt_tokens": finished.num_prompt_tokens,
        "num_completion_tokens": finished.num_completion_tokens,
        "num_cached_tokens": finished.num_cached_tokens,
        "timings": {
            "queue_s": timings.queue_s,
            "adapter_load_s": timings.adapter_load_s,
            "time_to_first_token_s": timings.time_to_first_token_s,
            "total_s": timings.total_s,
        },
    }


def _time(value: Timestamp) -> str:
    return value.ToJsonString()
