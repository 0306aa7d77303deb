"""Who must leave when grammars take too much of the step loop."""

import pytest

from dataplane.constraints.budget import MaskBudget
from dataplane.constraints.limits import (
    BURST_CPU_S,
    MASK_CPU_S,
    MAX_COUNTED_CPU_S,
    SHARE,
    mask_cpu_s,
)

ALL = (1, 2, 3)


def take(budget: MaskBudget, handle: int, excess_s: float) -> None:
    """Over as many steps as it takes: one counts for a part only."""
    while excess_s > 0:
        step_s = min(excess_s, MAX_COUNTED_CPU_S - MASK_CPU_S)
        budget.add(handle, step_s + MASK_CPU_S)
        excess_s -= step_s


def test_ordinary_ones_owe_nothing_however_many_there_are() -> None:
    budget = MaskBudget(MASK_CPU_S)
    for _ in range(10_000):
        budget.add(1, MASK_CPU_S)
    assert budget.leaving(ALL, ALL, 0.0) == []


def test_with_a_larger_vocabulary_more_is_ordinary() -> None:
    """A regular expression without any cunning is held against each of its tokens."""
    assert mask_cpu_s(512) == mask_cpu_s(32_000) == MASK_CPU_S
    simple_s = 256_000 * 15e-9
    for vocab_size, stays in ((256_000, True), (32_000, False)):
        budget = MaskBudget(mask_cpu_s(vocab_size))
        for _ in range(200):
            budget.add(1, simple_s)
        assert (budget.leaving(ALL, ALL, 0.0) == []) is stays


def test_two_bad_measurements_end_nobody_and_three_do() -> None:
    budget = MaskBudget(MASK_CPU_S)
    for _ in range(2):
        budget.add(1, 60.0)
    assert budget.leaving(ALL, ALL, 0.0) == []
    budget.add(1, 60.0)
    assert [each for each, _ in budget.leaving(ALL, ALL, 0.0)] == [1]


def test_those_that_took_the_most_leave_until_the_rest_is_bearable() -> None:
    budget = MaskBudget(MASK_CPU_S)
    for handle, taken_s in ((1, 0.6), (2, 0.15), (3, 0.9)):
        take(budget, handle, taken_s * BURST_CPU_S)
    ((handle, taken_s),) = budget.leaving(ALL, ALL, 0.0)
    assert handle == 3 and taken_s == pytest.approx(0.9 * BURST_CPU_S)
    assert budget.leaving(ALL, ALL, 0.0) == []
    take(budget, 2, 0.3 * BURST_CPU_S)
    assert [each for each, _ in budget.leaving(ALL, ALL, 0.0)] == [1]


def test_time_makes_up_for_a_share() -> None:
    budget = MaskBudget(MASK_CPU_S)
    now_s = 100.0
    assert budget.leaving(ALL, ALL, now_s) == []
    for _ in range(50):
        take(budget, 1, 0.9 * BURST_CPU_S)
        assert budget.leaving(ALL, ALL, now_s) == []
        now_s += BURST_CPU_S / SHARE
    now_s -= 0.5 * BURST_CPU_S / SHARE  # half of the time is not enough
    budget.leaving(ALL, ALL, now_s)
    take(budget, 1, 1.8 * BURST_CPU_S)
    assert [each for each, _ in budget.leaving(ALL, ALL, now_s)] == [1]


def test_who_is_not_in_the_step_leaves_later_and_who_is_gone_is_forgotten() -> None:
    budget = MaskBudget(MASK_CPU_S)
    take(budget, 1, 2 * BURST_CPU_S)
    assert budget.leaving((2,), ALL, 0.0) == []
    assert [each for each, _ in budget.leaving((1,), ALL, 0.0)] == [1]
    take(budget, 2, 2 * BURST_CPU_S)
    assert budget.leaving((), (), 0.0) == [] and budget.leaving((2,), ALL, 0.0) == []
