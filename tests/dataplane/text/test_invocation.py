from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from dataplane.text.invocation import last_place

_FEW = st.integers(1, 3)  # so that beginnings repeat


def naive(tokens: list[int], wanted: list[int]) -> int:
    size = len(wanted)
    starts = range(len(tokens) - size, -1, -1)
    return next((at for at in starts if tokens[at : at + size] == wanted), -1)


@given(st.lists(_FEW, max_size=40), st.lists(_FEW, min_size=1, max_size=6))
def test_it_is_the_last_place(tokens: list[int], wanted: list[int]) -> None:
    assert last_place(tokens, wanted) == naive(tokens, wanted)


@given(st.lists(_FEW, max_size=20), st.lists(_FEW, min_size=1, max_size=9), st.lists(_FEW))
def test_what_is_there_is_found(before: list[int], wanted: list[int], behind: list[int]) -> None:
    tokens = [*before, *wanted, *behind]
    place = last_place(tokens, wanted)
    assert place >= len(before) and tokens[place : place + len(wanted)] == wanted


def test_places_may_overlap_and_parts_are_none() -> None:
    assert last_place([7, 9, 7, 9, 7], [7, 9, 7]) == 2
    assert last_place([7, 9], [7, 9, 7]) == -1
    assert last_place([], [7]) == -1
    assert last_place([7, 9, 7], [7, 9, 7]) == 0


def test_a_prompt_made_to_be_slow_takes_as_long_as_any() -> None:
    """131,072 equal tokens, and 255 of them in what is looked for: tried at each place, that would
    be 130 times the work."""

    def took_s(tokens: list[int], wanted: list[int]) -> float:
        began_s = time.thread_time()
        assert last_place(tokens, wanted) == -1
        return time.thread_time() - began_s

    size = 1 << 17
    hostile = took_s([5] * size, [6, *[5] * 255])
    usual = min(took_s([5] * size, [6, *[7] * 255]) for _ in range(3))
    assert hostile < 25 * usual
