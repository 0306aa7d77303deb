"""What first tokens take on a part of their way."""

from __future__ import annotations

import pytest

from chorale.path_time import PathTime


def test_nothing_measured_is_no_time() -> None:
    assert PathTime().usual_s(100.0) == 0.0


def test_what_is_steady_is_told_as_it_is() -> None:
    path = PathTime()
    for at in range(1000):
        path.note(0.25, 100.0 + 0.01 * at)
    assert path.usual_s(110.0) == pytest.approx(0.25, rel=0.06), "the prior weighs as half a one"


def test_what_varies_is_told_with_its_deviation() -> None:
    path = PathTime()
    for at in range(1000):
        path.note(0.1 if at % 2 else 0.3, 100.0 + 0.01 * at)
    assert path.usual_s(110.0) == pytest.approx(0.2 + 0.1, rel=0.06)


def test_what_is_new_counts_more_and_what_is_old_is_forgotten() -> None:
    path = PathTime()
    for _ in range(100):
        path.note(5.0, 100.0)
    told = [path.usual_s(100.0 + waited_s) for waited_s in (0.0, 10.0, 20.0, 40.0, 80.0, 3600.0)]
    assert told[0] == pytest.approx(5.0, rel=0.05)
    assert told[-1] < 1e-9, "by itself: nobody would measure what refuses everybody"
    assert told == sorted(told, reverse=True)
    for at in range(100):
        path.note(0.01, 140.0 + 0.1 * at)
    assert path.usual_s(150.0) < 0.2


def test_clocks_that_disagree_do_no_harm() -> None:
    path = PathTime()
    path.note(-3.0, 100.0)
    assert path.usual_s(100.0) == 0.0
    path.note(1.0, 90.0)
    assert 0.0 < path.usual_s(80.0) < 2.0
