"""Background threads that rest, on a clock of the test's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from storage import pace
from storage.pace import Pace


class Clock:
    """time's functions, as the pace uses them."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.worked_s = 0.0
        self.slept: list[float] = []

    def work(self, seconds: float) -> None:
        self.now_s += seconds
        self.worked_s += seconds

    def monotonic(self) -> float:
        return self.now_s

    def thread_time(self) -> float:
        return self.worked_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def on_a_thread(work: Callable[[], None]) -> None:
    """A pace is kept by a thread for its whole life."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_a_thread_takes_its_share(clock: Clock) -> None:
    def work() -> None:
        Pace(0.1, lambda: True).keep()
        for piece_s in (0.002, 0.01, 0.001):
            before = sum(clock.slept)
            clock.work(piece_s)
            pace.rest()
            assert sum(clock.slept) - before == pytest.approx(9 * piece_s)
        assert max(clock.slept) <= 0.02  # it looks again

    on_a_thread(work)


def test_a_long_piece_is_not_paid_for_forever(clock: Clock) -> None:
    def work() -> None:
        Pace(0.01, lambda: True).keep()
        clock.work(1.0)
        pace.rest()
        assert sum(clock.slept) == pytest.approx(0.5)
        pace.rest()
        assert sum(clock.slept) == pytest.approx(0.5)  # it is paid for

    on_a_thread(work)


def test_it_ends_as_soon_as_nobody_needs_it(clock: Clock) -> None:
    def work() -> None:
        Pace(0.1, lambda: clock.now_s < 100.06).keep()
        clock.work(0.03)
        pace.rest()
        assert sum(clock.slept) == pytest.approx(0.04)
        clock.work(0.03)
        pace.rest()
        assert sum(clock.slept) == pytest.approx(0.04)

    on_a_thread(work)


def test_tasks_of_one_loop_share_a_share(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)

    async def work() -> None:
        Pace(0.1, lambda: True).keep_in_tasks()
        for _ in range(2):
            clock.work(0.003)
            await pace.rest_in_task()
            await pace.rest_in_task()  # of another one: that work is paid for
        pace.rest()  # the loop itself never stands still

    monkeypatch.setattr(pace.asyncio, "sleep", sleep)
    on_a_thread(lambda: asyncio.run(work()))
    assert sum(clock.slept) == pytest.approx(2 * 0.027)


def test_other_threads_do_not_rest(clock: Clock) -> None:
    on_a_thread(Pace(0.1, lambda: True).keep)
    clock.work(1.0)
    pace.rest()
    assert not clock.slept
