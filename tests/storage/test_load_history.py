"""Progress of loads while they run, and what is left of them."""

from __future__ import annotations

import asyncio

import pytest

from storage.errors import SourceNotFoundError
from storage.load_history import LoadHistory, Transfer, origin_kind
from storage.loader import AdapterRef
from storage.sources import Progress
from tests.helpers.waiting import eventually
from tests.storage.test_loader import DIGEST, REF, Bench, bench, settle

__all__ = ["bench"]


def test_a_transfer_knows_how_far_and_how_fast() -> None:
    now_s = 100.0
    transfer = Transfer(lambda: now_s)
    assert (transfer.received_bytes, transfer.total_bytes, transfer.bytes_per_s) == (0, 0, 0.0)
    transfer.note(Progress("config", 100, 100))
    transfer.note(Progress("weights", 0, None))
    assert (transfer.received_bytes, transfer.total_bytes) == (100, 100)
    for _ in range(20):
        now_s += 1.0
        transfer.note(Progress("weights", int(now_s - 100) * 1000, 50_000))
    assert (transfer.received_bytes, transfer.total_bytes) == (20_100, 50_100)
    assert transfer.bytes_per_s == pytest.approx(1000, rel=0.01)
    now_s += 5.0
    assert transfer.bytes_per_s == pytest.approx(500, rel=0.01), "nothing comes any more"
    transfer.note(Progress("weights", 10, 50_000))
    assert transfer.received_bytes == 110 and transfer.bytes_per_s == 0, "begun afresh"


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("/a/b", "file"),
        ("file:///a", "file"),
        ("HF://org/x", "hf"),
        ("https://h/x", "https"),
        ("s3://b/x", "s3"),
        ("blob:abc", "blob"),
        ("gopher://x", "other"),
        ("averyverylongscheme://x", "file"),
        ("", "file"),
    ],
)
def test_origins_are_few(uri: str, kind: str) -> None:
    assert origin_kind(uri) == kind


def test_the_last_failures_are_kept_and_all_are_counted() -> None:
    now_s = 5.0
    history = LoadHistory(lambda: now_s)
    for number in range(100):
        history.failed(f"d{number}", "hf", SourceNotFoundError("x" * 1000))
    history.failed("odd", "file", RuntimeError("secret"))
    failures = history.failures()
    assert len(failures) == 64 and failures[-1].digest == "odd"
    assert (failures[-1].reason, failures[-1].message) == ("INTERNAL", "")
    assert failures[0].reason == "SOURCE_NOT_FOUND" and len(failures[0].message) == 300
    assert [(each.origin, each.outcome, each.num_loads) for each in history.counts()] == [
        ("file", "INTERNAL", 1),
        ("hf", "SOURCE_NOT_FOUND", 100),
    ]


async def test_a_load_is_seen_while_it_runs(bench: Bench) -> None:
    bench.source.arrived = [1000, 3000]
    bench.source.gate.clear()
    task = asyncio.create_task(bench.loader.load(REF))
    await eventually(lambda: bench.source.fetched)
    await settle()
    (under_way,) = bench.loader.under_way()
    assert (under_way.digest, under_way.origin, under_way.state) == (DIGEST, "other", "fetching")
    assert (under_way.received_bytes, under_way.total_bytes) == (3000, 4000)
    bench.source.gate.set()
    await task
    assert bench.loader.under_way() == []
    (count,) = bench.loader.history.counts()
    assert (count.origin, count.outcome, count.num_loads) == ("other", "OK", 1)
    (timings,) = bench.loader.recent_timings()
    assert (count.read_s, count.parse_s) == (timings.read_s, timings.parse_s)
    assert (count.build_s, count.size_bytes) == (timings.build_s, timings.size_bytes)
    assert timings.origin == "other" and timings.ended_s > under_way.began_s
    await bench.loader.flush()
    bench.host.discard(DIGEST)
    await bench.loader.load(REF)
    assert [(each.origin, each.num_loads) for each in bench.loader.history.counts()] == [
        ("disk", 1),
        ("other", 1),
    ]
    host, disk = bench.loader.tier_stats()
    assert disk is not None
    assert (host.num_hits, host.num_misses) == (0, 2)
    assert (disk.num_hits, disk.num_misses) == (1, 1), "two looks of one load are one miss"


async def test_cancelled_and_failed_loads_are_told_apart(bench: Bench) -> None:
    bench.source.gate.clear()
    task = asyncio.create_task(bench.loader.load(REF))
    await eventually(lambda: bench.source.fetched)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: bench.loader.history.counts())
    bench.source.gate.set()
    with pytest.raises(SourceNotFoundError):
        await bench.loader.load(AdapterRef(DIGEST, "mem://nowhere"))
    await eventually(lambda: bench.loader.history.failures())
    assert [(each.outcome, each.num_loads) for each in bench.loader.history.counts()] == [
        ("CANCELLED", 1),
        ("SOURCE_NOT_FOUND", 1),
    ]
    (failure,) = bench.loader.history.failures()
    assert (failure.digest, failure.reason) == (DIGEST, "SOURCE_NOT_FOUND")
    assert "nowhere" in failure.message


async def test_a_load_waits_its_turn(bench: Bench) -> None:
    loader = bench.make(None, max_concurrent_loads=1)
    bench.source.gate.clear()
    other = AdapterRef("0" * 64, "mem://good")
    tasks = [asyncio.create_task(loader.load(ref)) for ref in (REF, other)]
    await eventually(lambda: bench.source.fetched)
    await settle()
    assert [each.state for each in loader.under_way()] == ["fetching", "queued"]
    bench.source.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loader.aclose()
