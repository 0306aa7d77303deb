from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from chorale.errors import UnauthenticatedError
from dataplane.channel import Stats
from dataplane.load_reports import ExpectedWait, LoadUnderWay, Outlook, TierCounters, WaitingPin
from dataplane.rpc.announce import load_of
from dataplane.rpc.metrics import EngineCollector
from storage.load_count import LoadCount
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_control_plane import make_ticket
from tests.helpers.fake_engine import FakeScript, ready_message
from tests.helpers.prometheus import Metrics

PREFIX = "chorale_data_plane"
PLANE = {"data_plane": "dp"}


OUTLOOK = Outlook(
    behind_running_s=1.0,
    waits=[ExpectedWait(2, 3.0), ExpectedWait(0, 7.0)],
    num_open=0,
    request_s=0.3,
    request_prefill_s=0.05,
    decode_step_s=0.02,
    prefill_step_s=0.01,
    prefill_token_s=0.001,
    max_batch_tokens=512,
    computed_share=1.0,
    tier_costs=[],
)


def stats(**changes: Any) -> Stats:
    fields: dict[str, Any] = {
        "num_running": 1,
        "num_waiting": 2,
        "num_pages": 100,
        "num_available_pages": 60,
        "num_used_pages": 40,
        "num_generated_tokens": 9,
        "pool_digests": [],
        "host_digests": [],
        "disk_digests": [],
    }
    return Stats(**{**fields, **changes})


def seen(reported: Stats | None) -> Metrics:
    registry = CollectorRegistry()
    load = load_of(ready_message(), reported)
    load.path_s = 0.125
    registry.register(EngineCollector("dp", lambda: load, lambda: reported))
    return Metrics.of(registry)


def test_each_figure_of_the_engine_is_shown() -> None:
    pool = TierCounters(
        tier="pool",
        num_adapters=1,
        size_bytes=2,
        max_bytes=3,
        num_hits=4,
        num_misses=5,
        num_evictions=6,
        num_damaged=7,
    )
    parts = {"queue_s": 0.1, "read_s": 0.2, "parse_s": 0.3, "build_s": 0.4}
    loaded = LoadCount(origin="disk", outcome="OK", num_loads=7, size_bytes=70, **parts)
    failed = LoadCount(origin="hf", outcome="SOURCE_TIMEOUT", num_loads=1, size_bytes=0, **parts)
    loading = LoadUnderWay(
        digest="d",
        origin="hf",
        state="fetching",
        received_bytes=30,
        total_bytes=40,
        bytes_per_s=1.0,
        waited_s=2.0,
    )
    found = seen(
        stats(
            tiers=[pool],
            loads=[loaded, failed],
            loading=[loading],
            num_loading=5,
            num_adapter_pages=20,
            num_cached_blocks=10,
            num_free_pages=30,
            num_prompt_tokens=11,
            num_prefix_hit_tokens=12,
            num_preemptions=13,
            num_drafted_tokens=27,
            num_accepted_tokens=23,
            num_hopeless=14,
            num_copies=15,
            copy_s=1.5,
            prefill_tokens_per_s=1000.0,
            decode_step_s=0.02,
            num_prefetch_asked=21,
            num_prefetch_hits=22,
            num_prefetch_late=23,
            prefetch_late_s=0.5,
            prefetch_wasted_bytes=24,
            num_prefetch_failed=25,
            num_prefetch_refused=26,
            waiting_pins=[WaitingPin(digest="d", tier="pool", reason="PIN_POOL_FULL")] * 2,
            num_waiting_pins=2,
            outlook=OUTLOOK,
        )
    )
    for name, value in {
        "first_token_path_seconds": 0.125,
        "sequences_running": 1,
        "sequences_waiting": 2,
        "sequences_running_max": 4,
        "pool_pages": 100,
        "pool_pages_available": 60,
        "generated_tokens_total": 9,
        "adapters_loading": 5,
        "pins_waiting": 2,
        "expected_wait_seconds": 7.0,
        "prompt_tokens_total": 11,
        "prefix_hit_tokens_total": 12,
        "preemptions_total": 13,
        "drafted_tokens_total": 27,
        "accepted_draft_tokens_total": 23,
        "hopeless_requests_total": 14,
        "adapter_copies_total": 15,
        "adapter_copy_seconds_total": 1.5,
        "prefill_tokens_per_second": 1000,
        "decode_step_seconds": 0.02,
        "prefetch_late_seconds_total": 0.5,
        "prefetch_wasted_bytes_total": 24,
    }.items():
        assert found(f"{PREFIX}_{name}", PLANE) == value, name
    for name, value in {
        "tier_adapters": 1,
        "tier_bytes": 2,
        "tier_max_bytes": 3,
        "tier_hits_total": 4,
        "tier_misses_total": 5,
        "tier_evictions_total": 6,
        "tier_damaged_total": 7,
    }.items():
        assert found(f"{PREFIX}_{name}", PLANE, tier="pool") == value, name
    owners = {"adapter": 20, "prefix": 10, "free": 30, "sequence": 40}
    for owner, pages in owners.items():
        assert found(f"{PREFIX}_pool_owner_pages", PLANE, owner=owner) == pages
    loads = f"{PREFIX}_adapter_loads_total"
    assert found(loads, PLANE, origin="disk", outcome="OK") == 7
    assert found(loads, PLANE, origin="hf", outcome="SOURCE_TIMEOUT") == 1
    for part, seconds in (("queue", 0.1), ("read", 0.2), ("parse", 0.3), ("build", 0.4)):
        name = f"{PREFIX}_adapter_load_seconds_total"
        assert found(name, PLANE, origin="disk", part=part) == seconds
    assert found(f"{PREFIX}_adapter_load_bytes_total", PLANE, origin="disk") == 70
    asked = {"asked": 21, "hit": 22, "late": 23, "failed": 25, "refused": 26}
    for what, count in asked.items():
        assert found(f"{PREFIX}_prefetches_total", PLANE, what=what) == count
    assert found(f"{PREFIX}_pins_waiting_for", PLANE, reason="PIN_POOL_FULL") == 2
    for what, count in (("received", 30), ("total", 40)):
        assert found(f"{PREFIX}_adapters_loading_bytes", PLANE, what=what) == count


def test_before_the_engine_has_reported() -> None:
    found = seen(None)
    assert found(f"{PREFIX}_pool_pages_available", PLANE) == 100
    assert f"{PREFIX}_preemptions_total" not in found.names()


async def test_requests_are_counted(start_rig: StartRig) -> None:
    async with start_rig(FakeScript()) as rig:
        ticket = make_ticket(adapter_name="pirate", adapter_digest="d" * 64)
        await rig.generate(ticket=ticket)
        with pytest.raises(UnauthenticatedError):
            await rig.generate(ticket=b"forged")
        registry = CollectorRegistry()
        registry.register(rig.metrics)
        found = Metrics.of(registry)
    assert found(f"{PREFIX}_requests_total", outcome="ok", reason="") == 1
    (reason,) = found.values("reason") - {""}
    assert reason.startswith("TICKET_")
    assert found(f"{PREFIX}_requests_total", outcome="error", reason=reason) == 1
    assert found(f"{PREFIX}_model_tokens_total", model="pirate", version="", kind="completion") == 3
    assert found(f"{PREFIX}_model_tokens_total", model="pirate", version="", kind="cached") == 3
    assert found(f"{PREFIX}_time_to_first_token_seconds_count") == 1
    assert found(f"{PREFIX}_queue_seconds_sum") == 0.25
    assert found(f"{PREFIX}_adapter_wait_seconds_sum") == 0.125
