from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from benchmarks.errors import TargetError
from benchmarks.load import driver
from benchmarks.load.driver import Driver
from benchmarks.load.generators import closed, with_warm_up
from benchmarks.load.lag import watched
from benchmarks.load.progress import Progress
from benchmarks.load.records import Record
from benchmarks.load.run import RunOptions, run_phases
from benchmarks.load.workload import Phase, Request
from tests.benchmarks.fake_target import FakeTarget
from tests.helpers import virtual_time
from tests.helpers.virtual_time import VirtualClock


def phase_of(requests: list[Request], concurrency: int = 0) -> Phase:
    return Phase("test", tuple(requests), concurrency)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """What the driver goes by."""
    made = VirtualClock()
    monkeypatch.setattr(driver, "time", SimpleNamespace(perf_counter=made))
    return made


async def run(target: FakeTarget, phase: Phase, **options: object) -> list[Record]:
    prompts = [[1] * request.num_prompt_tokens for request in phase.requests]
    return await Driver(target, phase, prompts, **options).run()  # pyright: ignore[reportArgumentType]


async def test_a_closed_loop_keeps_so_many_under_way_and_sends_all() -> None:
    target = FakeTarget(first_s=0.01, gap_s=0.001)
    requests = [Request(index, f"a{index % 3}", 5, 4) for index in range(20)]
    records = await run(target, phase_of(requests, concurrency=4))
    assert target.max_open == 4 and target.num_open == 0
    assert [record.index for record in records] == list(range(20))
    assert all(record.completed and record.num_tokens == 4 for record in records)
    assert sorted(target.seen) == sorted((f"a{index % 3}", 5, 4) for index in range(20))


async def test_a_closed_loop_has_no_more_workers_than_requests() -> None:
    target = FakeTarget()
    assert len(await run(target, phase_of([Request(0, "", 1, 1)], concurrency=64))) == 1


def test_an_open_loop_sends_when_due_whatever_is_still_under_way(clock: VirtualClock) -> None:
    target = FakeTarget(first_s=0.2)
    requests = [Request(index, "", 1, 1, at_s=0.02 * index) for index in range(8)]
    records = virtual_time.run(clock, run(target, phase_of(requests)))
    assert target.max_open == 8
    for record in records:
        assert record.due_s == record.sent_s == pytest.approx(0.02 * record.index)


def test_latency_counts_from_when_a_request_was_due(clock: VirtualClock) -> None:
    """A client that lags may not hide the wait: no coordinated omission."""
    target = FakeTarget()
    phase = phase_of([Request(0, "", 1, 1, at_s=0.0), Request(1, "", 1, 1, at_s=0.01)])

    def block(record: Record) -> None:
        if record.index == 0 and not record.token_s and not record.completed:
            clock.now_s += 0.15

    late = virtual_time.run(clock, run(target, phase, observe=block))[1]
    assert late.sent_s == pytest.approx(0.15)
    assert late.ttft_s == pytest.approx(0.14)


def test_times_of_the_tokens_are_those_of_their_arrival(clock: VirtualClock) -> None:
    target = FakeTarget(first_s=0.05, gap_s=0.02)
    phase = phase_of([Request(0, "", 1, 4)], concurrency=1)
    (record,) = virtual_time.run(clock, run(target, phase))
    assert record.ttft_s == pytest.approx(0.05)
    assert record.gaps_s == pytest.approx([0.02] * 3)
    assert record.latency_s == pytest.approx(0.11)
    assert (record.queue_s, record.adapter_load_s) == (0.25, 0.125)


async def test_failures_are_counted_by_reason_and_the_rest_goes_on() -> None:
    target = FakeTarget()
    target.failing["bad"] = "POOL_TOO_SMALL"
    requests = [Request(index, "bad" if index % 2 else "good", 1, 3) for index in range(10)]
    records = await run(target, phase_of(requests, concurrency=2))
    assert [record.error for record in records] == ["", "POOL_TOO_SMALL"] * 5
    assert records[1].num_tokens == 1 and not records[1].completed


def test_a_request_that_hangs_ends_at_its_timeout(clock: VirtualClock) -> None:
    target = FakeTarget()
    target.hanging.add("stuck")
    requests = [Request(0, "stuck", 1, 3), Request(1, "", 1, 3)]
    phase = phase_of(requests, concurrency=1)
    records = virtual_time.run(clock, run(target, phase, timeout_s=0.05))
    assert [record.error for record in records] == ["CLIENT_TIMEOUT", ""]
    assert records[1].sent_s == pytest.approx(0.05)
    assert target.num_open == 0


def test_more_open_streams_than_allowed_are_failures_not_delays(clock: VirtualClock) -> None:
    target = FakeTarget(first_s=0.1)
    requests = [Request(index, "", 1, 1, at_s=0.0) for index in range(5)]
    records = virtual_time.run(clock, run(target, phase_of(requests), max_in_flight=3))
    assert sorted(record.error for record in records) == ["", "", ""] + ["CLIENT_SATURATED"] * 2
    assert len(target.seen) == 3


async def test_cancelling_the_run_closes_every_stream() -> None:
    target = FakeTarget(first_s=30.0)
    requests = [Request(index, "", 1, 1) for index in range(6)]
    task = asyncio.create_task(run(target, phase_of(requests, concurrency=6)))
    while target.num_open < 6:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (target.num_open, target.num_cancelled) == (0, 6)


async def test_progress_follows_a_run() -> None:
    target = FakeTarget()
    target.failing["bad"] = "NOT_FOUND"
    phase = phase_of([Request(i, "bad" if i == 3 else "", 1, 5) for i in range(8)], concurrency=3)
    progress = Progress(phase, "1/1")
    await run(target, phase, observe=progress.observe)
    assert (progress.num_completed, progress.num_running) == (7, 0)
    assert progress.num_tokens == 7 * 5 + 1
    assert progress.errors == {"NOT_FOUND": 1}
    assert len(progress.ttft_s) == 8 and progress.ttft_s == sorted(progress.ttft_s)


async def test_a_client_that_blocks_is_reported_to_have_lagged() -> None:
    async with watched() as lag:
        for _ in range(5):
            await asyncio.sleep(0.03)
            time.sleep(0.1)
    report = lag.report([0.0, 0.2])
    assert report["kept_up"] is False
    assert isinstance(report["loop_lag_max_s"], float) and report["loop_lag_max_s"] > 0.05
    assert any("event loop" in doubt for doubt in report["doubts"])  # pyright: ignore
    assert any("dispatch" in doubt for doubt in report["doubts"])  # pyright: ignore


async def test_an_idle_client_kept_up() -> None:
    async with watched() as lag:
        await asyncio.sleep(0.2)
    lag.loop_lag_s = [0.001]  # whatever else this machine did meanwhile
    assert lag.report([])["kept_up"] is True


async def test_each_counted_phase_is_reported_with_new_prompts() -> None:
    target = FakeTarget()
    workload = with_warm_up(closed(["a", "b"], concurrency=2, num_requests=6), ["a", "b"])
    (report,) = await run_phases(target, workload, RunOptions("fake://"), vocab_size=300)
    assert (report["name"], report["loop"], report["concurrency"]) == ("closed", "closed", 2)
    assert report["summary"]["num_completed"] == len(report["requests"]) == 6
    assert len(target.seen) == 2 + 6
    assert len({tuple(prompt) for prompt in target.prompts}) == 8


async def test_nothing_is_measured_when_the_warm_up_fails() -> None:
    target = FakeTarget()
    target.failing["b"] = "NOT_FOUND"
    workload = with_warm_up(closed(["a", "b"], num_requests=6), ["a", "b"])
    with pytest.raises(TargetError, match="'b'") as caught:
        await run_phases(target, workload, RunOptions("fake://"), vocab_size=300)
    assert caught.value.reason == "NOT_FOUND"
    assert len(target.seen) == 2
