"""A clock that another machine tells."""

from __future__ import annotations

import itertools

from chorale.told_clock import ToldClock


def test_it_goes_on_from_what_was_told_last() -> None:
    monotonic = itertools.count(100.0, 5.0)
    clock = ToldClock(clock=lambda: next(monotonic), own=lambda: 7.0)
    assert clock.now_s() == 7.0
    clock.told(1000.0)
    assert (clock.now_s(), clock.now_s()) == (1005.0, 1010.0)
    clock.told(500.0)
    assert clock.now_s() == 505.0
