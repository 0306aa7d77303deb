"""What a data plane and its engine tell each other, in the words of the fleet's messages."""

from __future__ import annotations

from msgspec import structs

from chorale.v1 import fleet_pb2
from dataplane.channel import Adapter, Prefetch, Stats, Unload, Unpin
from dataplane.load_reports import ExpectedWait, Outlook, TierCost
from dataplane.rpc.announce import directive_of, load_of
from tests.helpers.fake_engine import ready_message

STATS = Stats(
    num_running=1,
    num_waiting=2,
    num_pages=100,
    num_available_pages=60,
    num_used_pages=40,
    num_generated_tokens=9,
    pool_digests=[],
    host_digests=[],
    disk_digests=[],
)


def test_directives_in_the_words_of_the_channel() -> None:
    message = fleet_pb2.Directive(
        sequence=1,
        action=fleet_pb2.ADAPTER_ACTION_PREFETCH,
        digest="d",
        source="/a",
        name="a@1",
        tier=fleet_pb2.ADAPTER_TIER_POOL,
        within={"seconds": 2},
    )
    adapter = Adapter("d", "/a", "a@1")
    assert directive_of(message) == Prefetch(adapter, "pool")
    message.action = fleet_pb2.ADAPTER_ACTION_PIN
    message.tier = fleet_pb2.ADAPTER_TIER_HOST
    assert directive_of(message) == Prefetch(adapter, "host", pin=True)
    message.tier = fleet_pb2.ADAPTER_TIER_UNSPECIFIED
    assert directive_of(message) is None
    message.action = fleet_pb2.ADAPTER_ACTION_UNPIN
    assert directive_of(message) == Unpin("d")
    message.action = fleet_pb2.ADAPTER_ACTION_UNLOAD
    assert directive_of(message) == Unload("d", 2.0)
    message.action = 99  # pyright: ignore[reportAttributeAccessIssue]
    assert directive_of(message) is None


def test_prefetch_counters_are_reported() -> None:
    stats = structs.replace(
        STATS,
        num_prefetch_hits=1,
        num_prefetch_late=2,
        prefetch_late_s=1.5,
        prefetch_wasted_bytes=4,
        num_prefetch_failed=5,
        num_prefetch_refused=6,
    )
    assert load_of(ready_message(), stats).prefetches == fleet_pb2.Prefetches(
        num_hits=1,
        num_late=2,
        late={"seconds": 1, "nanos": 500_000_000},
        wasted_bytes=4,
        num_failed=5,
        num_refused=6,
    )


def test_what_a_first_token_takes_is_announced() -> None:
    outlook = Outlook(
        behind_running_s=0.5,
        waits=[ExpectedWait(3, 1.0), ExpectedWait(0, 2.0)],
        num_open=4,
        request_s=0.25,
        request_prefill_s=0.125,
        decode_step_s=0.02,
        prefill_step_s=0.01,
        prefill_token_s=0.001,
        max_batch_tokens=512,
        computed_share=0.75,
        tier_costs=[TierCost("disk", 0.1, 1e-9)],
        cached_for_s=77.0,
    )
    told = load_of(ready_message(), structs.replace(STATS, outlook=outlook)).outlook
    assert [(each.priority, each.wait_s) for each in told.waits] == [(3, 1.0), (0, 2.0)]
    (cost,) = told.tier_costs
    assert (cost.tier, cost.fixed_s, cost.byte_s) == ("disk", 0.1, 1e-9)
    names = set(Outlook.__struct_fields__) - {"waits", "tier_costs"}
    for name in names:
        assert getattr(told, name) == getattr(outlook, name), name
    assert set(fleet_pb2.Outlook.DESCRIPTOR.fields_by_name) == set(Outlook.__struct_fields__)
    assert not load_of(ready_message(), STATS).HasField("outlook")
    assert not load_of(ready_message(), None).HasField("outlook")
