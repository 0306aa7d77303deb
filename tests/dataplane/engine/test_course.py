"""What is ahead of a newcomer, played through."""

from __future__ import annotations

import random
import time

import pytest

from dataplane.engine.course import MAX_STARTS, Ahead, ExpectedWait, Job, StepCosts, expected_waits

COSTS = StepCosts(lambda rows: 0.01 + 0.001 * rows, 0.005, 0.0001)


def ahead(running: list[Job], waiting: list[Job], **changes: int) -> Ahead:
    fields = {"max_running": 4, "max_batch_tokens": 100, "num_pages": 1000, "newcomer_pages": 1}
    return Ahead(running, waiting, **{**fields, **changes})


def decoding(more: int, pages: int = 1) -> Job:
    return Job(1, more, pages)


def test_nothing_ahead_nothing_to_wait_for() -> None:
    assert expected_waits(ahead([], []), COSTS) == (0.0, [])
    assert expected_waits(ahead([decoding(50)] * 3, []), COSTS) == (0.0, [])


def test_a_full_batch_is_waited_for_until_the_first_ends() -> None:
    running = [decoding(more) for more in (30, 10, 20, 40)]
    behind, waits = expected_waits(ahead(running, []), COSTS)
    assert behind == pytest.approx(10 * COSTS.decode_s(4)) and waits == []
    # One place each for those that wait, and the newcomer gets the third.
    behind, waits = expected_waits(ahead(running, [decoding(100), decoding(100)]), COSTS)
    assert behind == pytest.approx(10 * 0.014)
    assert waits == [ExpectedWait(0, pytest.approx(30 * 0.014))]


def test_pages_hold_up_as_places_do() -> None:
    running = [decoding(10, pages=6), decoding(20, pages=3)]
    behind, _ = expected_waits(ahead(running, [], num_pages=10, newcomer_pages=2), COSTS)
    assert behind == pytest.approx(10 * COSTS.decode_s(2))
    behind, _ = expected_waits(ahead(running, [], num_pages=10, newcomer_pages=1), COSTS)
    assert behind == 0.0
    # Alone, one may always begin.
    behind, _ = expected_waits(ahead(running, [], num_pages=10, newcomer_pages=99), COSTS)
    assert behind == pytest.approx(10 * COSTS.decode_s(2) + 10 * COSTS.decode_s(1))


def test_prompts_ahead_fill_steps() -> None:
    behind, waits = expected_waits(ahead([], [Job(250, 5, 1)]), COSTS)
    assert behind == 0.0
    # Two full chunks; the third leaves room for the newcomer.
    assert waits == [ExpectedWait(0, pytest.approx(2 * (0.005 + 100 * 0.0001)))]


def test_levels_wait_for_their_own_and_higher_ones() -> None:
    running = [decoding(10)] * 4
    waiting = [Job(1, 10, 1, level=3)] * 4 + [Job(1, 10, 1, level=0)] * 4
    behind, waits = expected_waits(ahead(running, waiting), COSTS)
    assert behind == pytest.approx(0.14)
    assert waits == [ExpectedWait(3, pytest.approx(0.28)), ExpectedWait(0, pytest.approx(0.42))]


def test_who_is_not_ready_or_gives_up_holds_nobody_up() -> None:
    running = [decoding(10)] * 4
    loading = Job(1, 10, 1, ready_in_s=5.0)
    hopeless = Job(1, 10, 1, latest_s=0.1)
    _, waits = expected_waits(ahead(running, [loading] * 4 + [hopeless] * 4), COSTS)
    assert waits == [ExpectedWait(0, pytest.approx(0.14))]


def test_a_long_queue_is_bounded_work_and_goes_on_at_its_rate() -> None:
    generator = random.Random(1)
    running = [decoding(generator.randrange(1, 500)) for _ in range(64)]
    waiting = [Job(300, 250, 20) for _ in range(4096)]
    bounds = {"max_running": 64, "max_batch_tokens": 512, "num_pages": 100_000}
    many = ahead(running, waiting, **bounds)
    began_s = time.process_time()
    _, (wait,) = expected_waits(many, COSTS)
    assert time.process_time() - began_s < 0.5
    few = ahead(
        running, waiting[:MAX_STARTS], max_running=64, max_batch_tokens=512, num_pages=10**5
    )
    behind, (first,) = expected_waits(few, COSTS)
    queue_s = (first.wait_s - behind) * 4096 / MAX_STARTS
    assert wait.wait_s == pytest.approx(behind + queue_s)


def test_endless_prompts_end() -> None:
    _, (wait,) = expected_waits(ahead([], [Job(10**9, 5, 1), Job(1, 5, 1)]), COSTS)
    assert wait.wait_s > 5.0
    behind, (wait,) = expected_waits(ahead([Job(10**9, 5, 1)], [Job(1, 5, 1)] * 50), COSTS)
    assert wait.wait_s == behind > 5.0, "as far as it was played through"
