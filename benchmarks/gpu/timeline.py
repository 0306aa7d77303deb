"""When a step's kernels ran, and beside which others: what sums of their times do not tell."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Kernel(NamedTuple):
    """One launch. Times in microseconds, of one clock."""

    name: str
    stream: int
    start: float
    end: float


class Shares(NamedTuple):
    """Microseconds of a span in which kernels of these kinds ran."""

    others: float  # at least one that is not marked
    marked: float  # marked ones and no other: what they cost where they do not fit beside others
    idle: float  # none


def shares(kernels: Iterable[Kernel], is_marked: Callable[[str], bool]) -> Shares:
    """Of the span from the first start to the last end."""
    borders = sorted(
        (at, change, is_marked(each.name))
        for each in kernels
        for at, change in ((each.start, 1), (each.end, -1))
    )
    running = {True: 0, False: 0}
    spent = {"others": 0.0, "marked": 0.0, "idle": 0.0}
    for (at, change, marked), (until, *_) in itertools.pairwise(borders):
        running[marked] += change
        kind = "others" if running[False] else "marked" if running[True] else "idle"
        spent[kind] += until - at
    return Shares(**spent)


def one_layer(kernels: Sequence[Kernel], anchor: str) -> list[dict[str, Any]]:
    """The kernels from one launch of `anchor`, which each layer has once, up to the next one, with
    times from its start: of the launch in the middle. Empty where there are fewer than two."""
    in_order = sorted(kernels, key=lambda each: each.start)
    anchors = [each for each in in_order if each.name == anchor]
    if len(anchors) < 2:
        return []
    first = (len(anchors) - 1) // 2
    begin, end = anchors[first].start, anchors[first + 1].start
    return [
        {
            "name": each.name[:80],
            "stream": each.stream,
            "start_us": round(each.start - begin, 2),
            "us": round(each.end - each.start, 2),
        }
        for each in in_order
        if begin <= each.start < end
    ]
