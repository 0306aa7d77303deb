"""Between messages and the domain's values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping

from google.protobuf import duration_pb2, timestamp_pb2

from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import blob_pb2 as blob_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from controlplane.errors import InvalidRequestError
from controlplane.fleet.model import DataPlane, Load, Residency
from controlplane.registry.model import (
    Adapter,
    AdapterVersion,
    Alias,
    AliasTarget,
    BaseModelRecord,
    ModuleRecord,
)
from controlplane.rpc.counters import add_counters
from controlplane.rpc.merges import merge_to_pb
from controlplane.rpc.outlook import add_outlook
from storage.files import CONFIG_NAME, WEIGHTS_NAME
from storage.sources import Progress
from storage.upload import UploadHeader


def timestamp(milliseconds: int) -> timestamp_pb2.Timestamp:
    message = timestamp_pb2.Timestamp()
    message.FromMilliseconds(milliseconds)
    return message


def duration(seconds: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromMilliseconds(int(seconds * 1000))
    return message


def adapter_to_pb(adapter: Adapter) -> registry_pb.Adapter:
    return registry_pb.Adapter(
        name=adapter.name,
        current_version=adapter.current_version,
        versions=[version_to_pb(version) for version in adapter.versions],
        aliases=[alias_to_pb(alias) for alias in adapter.aliases],
    )


def version_to_pb(version: AdapterVersion) -> registry_pb.AdapterVersion:
    record = version.record
    return registry_pb.AdapterVersion(
        version=version.version,
        digest=record.digest,
        source=version.source,
        base_model=record.base_model,
        rank=record.rank,
        target_modules=record.target_modules,
        size_bytes=record.size_bytes,
        created_at=timestamp(record.created_at_ms),
        labels=version.labels,
        private=version.private,
        merge=merge_to_pb(version.source),
        invocation_tokens=record.invocation_tokens,
    )


def alias_to_pb(alias: Alias) -> registry_pb.Alias:
    heaviest = alias.heaviest
    several = alias.targets if len(alias.targets) > 1 else ()
    return registry_pb.Alias(
        name=alias.name,
        adapter=heaviest.adapter,
        version=heaviest.version,
        targets=[
            registry_pb.AliasTarget(
                adapter=target.adapter, version=target.version, weight=target.weight
            )
            for target in several
        ],
    )


def alias_from_pb(alias: registry_pb.Alias) -> Alias:
    """Raises: InvalidRequestError where it says two things."""
    single = AliasTarget(alias.adapter, alias.version)
    if not alias.targets:
        return Alias(alias.name, (single,))
    made = Alias(
        alias.name,
        tuple(AliasTarget(each.adapter, each.version, each.weight) for each in alias.targets),
    )
    heaviest = made.heaviest
    if (alias.adapter or alias.version) and (single.adapter, single.version) != (
        heaviest.adapter,
        heaviest.version,
    ):
        raise InvalidRequestError(
            "ALIAS_TARGETS_INVALID",
            "alias.adapter and alias.version are another target than the heaviest of "
            "alias.targets: leave them out",
            metadata={"field": "alias.adapter"},
        )
    return made


def base_model_to_pb(base: BaseModelRecord) -> registry_pb.BaseModel:
    return registry_pb.BaseModel(
        name=base.name,
        fingerprint=base.fingerprint,
        num_layers=base.num_layers,
        layer_modules=[_module_to_pb(module) for module in base.layer_modules],
        outer_modules=[_module_to_pb(module) for module in base.outer_modules],
        mixture_modules=[_module_to_pb(module) for module in base.mixture_modules],
        max_context_tokens=base.max_context_tokens,
        vocab_size=base.vocab_size,
    )


def base_model_from_pb(base: registry_pb.BaseModel) -> BaseModelRecord:
    return BaseModelRecord(
        name=base.name,
        fingerprint=base.fingerprint,
        num_layers=base.num_layers,
        layer_modules=_modules_from_pb(base.layer_modules),
        outer_modules=_modules_from_pb(base.outer_modules),
        mixture_modules=_modules_from_pb(base.mixture_modules),
        max_context_tokens=base.max_context_tokens,
        vocab_size=base.vocab_size,
    )


def load_from_pb(load: fleet_pb.Load) -> Load:
    return Load(
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        max_running=load.max_running,
        num_pages=load.num_pages,
        num_available_pages=load.num_available_pages,
        num_generated_tokens=load.num_generated_tokens,
        num_prefetch_hits=load.prefetches.num_hits,
        num_prefetch_late=load.prefetches.num_late,
        prefetch_late_ms=max(0, load.prefetches.late.ToMilliseconds()),
        prefetch_wasted_bytes=load.prefetches.wasted_bytes,
        num_prefetch_failed=load.prefetches.num_failed,
        num_prefetch_refused=load.prefetches.num_refused,
        num_prefetch_asked=load.prefetches.num_asked,
    )


def prefetches_to_pb(load: Load) -> fleet_pb.Prefetches | None:
    """None where there were none."""
    counts = (load.num_prefetch_hits, load.num_prefetch_late, load.prefetch_wasted_bytes)
    counts += (load.num_prefetch_failed, load.num_prefetch_refused, load.num_prefetch_asked)
    if not any(counts):
        return None
    late = duration_pb2.Duration()
    late.FromMilliseconds(load.prefetch_late_ms)
    return fleet_pb.Prefetches(
        num_hits=load.num_prefetch_hits,
        num_late=load.num_prefetch_late,
        late=late,
        wasted_bytes=load.prefetch_wasted_bytes,
        num_failed=load.num_prefetch_failed,
        num_refused=load.num_prefetch_refused,
        num_asked=load.num_prefetch_asked,
    )


def residency_from_pb(residency: fleet_pb.Residency) -> Residency:
    return Residency(
        pool=list(residency.pool_digests),
        host=list(residency.host_digests),
        disk=list(residency.disk_digests),
    )


def data_plane_to_pb(plane: DataPlane) -> fleet_pb.DataPlane:
    load, residency = plane.load, plane.residency
    message = fleet_pb.DataPlane(
        data_plane_id=plane.data_plane_id,
        incarnation=plane.incarnation,
        endpoint=plane.endpoint,
        base_model=plane.base_model,
        load=fleet_pb.Load(
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            max_running=load.max_running,
            num_pages=load.num_pages,
            num_available_pages=load.num_available_pages,
            num_generated_tokens=load.num_generated_tokens,
            prefetches=prefetches_to_pb(load),
        ),
        residency=fleet_pb.Residency(
            pool_digests=residency.pool,
            host_digests=residency.host,
            disk_digests=residency.disk,
        ),
        last_heartbeat_at=timestamp(plane.last_heartbeat_ms),
    )
    add_counters(message.load, plane.counters)
    add_outlook(message.load, plane.outlook)
    return message


def progress_to_pb(progress: Progress) -> registry_pb.FileProgress:
    return registry_pb.FileProgress(
        file=progress.file,
        received_bytes=progress.received_bytes,
        total_bytes=progress.total_bytes or 0,
    )


def upload_header_from_pb(header: registry_pb.UploadHeader) -> UploadHeader:
    return UploadHeader(header.config, header.weights_bytes, header.weights_sha256)


async def upload_begin_from_pb(
    requests: AsyncIterator[registry_pb.UploadAdapterRequest],
) -> registry_pb.UploadBegin:
    """Raises: InvalidRequestError when the first message is another."""
    first = await anext(aiter(requests), None)
    if first is None or not first.HasField("begin"):
        raise _bad_order("the first message must be `begin`")
    return first.begin


async def upload_data_from_pb(
    requests: AsyncIterator[registry_pb.UploadAdapterRequest],
) -> AsyncIterator[bytes]:
    """Raises: InvalidRequestError for messages that are not data."""
    async for request in requests:
        if not request.HasField("data"):
            raise _bad_order("all messages but the first must be `data`")
        yield request.data


def blob_file_from_pb(file: blob_pb.BlobFile) -> str:
    """Raises: InvalidRequestError."""
    names = {blob_pb.BLOB_FILE_CONFIG: CONFIG_NAME, blob_pb.BLOB_FILE_WEIGHTS: WEIGHTS_NAME}
    if file not in names:
        raise InvalidRequestError(
            "BLOB_FILE_INVALID",
            f"file must be BLOB_FILE_CONFIG or BLOB_FILE_WEIGHTS, not {file}",
            metadata={"field": "file"},
        )
    return names[file]


def keys_to_pb(keys: Mapping[str, bytes]) -> list[fleet_pb.TicketKey]:
    return [fleet_pb.TicketKey(key_id=key_id, key=key) for key_id, key in sorted(keys.items())]


def _module_to_pb(module: ModuleRecord) -> registry_pb.ModuleShape:
    return registry_pb.ModuleShape(
        module=module.module,
        in_features=module.in_features,
        out_features=module.out_features,
        layers=module.layers,
        num_experts=module.num_experts,
    )


def _modules_from_pb(modules: Iterable[registry_pb.ModuleShape]) -> tuple[ModuleRecord, ...]:
    return tuple(
        sorted(
            (
                ModuleRecord(
                    shape.module,
                    shape.in_features,
                    shape.out_features,
                    tuple(shape.layers),
                    shape.num_experts,
                )
                for shape in modules
            ),
            key=lambda record: record.module,
        )
    )


def _bad_order(problem: str) -> InvalidRequestError:
    return InvalidRequestError("UPLOAD_ORDER", f"UploadAdapter: {problem}")
