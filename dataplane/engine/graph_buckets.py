"""Which decode steps are captured: a graph has one size, and serves every step that fits in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

_SMALL_SIZES = (1, 2, 4)
_STEPS = ((8, 32), (16, 64), (32, 256), (64, 1 << 30))  # multiples of the first, up to the second
_TYPICAL_RANKS = (16, 64, 256)
_MANY_ROWS = 16  # from here on, steps of few adapters have graphs of their own
_FEW = 4  # rows of an adapter, on average, where adapters are few
_SHORT_CONTEXT_TOKENS = 8192


class Variant(NamedTuple):
    """What one graph is for."""

    size: int  # rows
    num_blocks: int  # of the longest sequence
    rank: int = 0  # of the largest projection of any adapter; 0: without adapters
    num_adapters: int = 0

    @property
    def is_shared(self) -> bool:
        """Whether each adapter has many rows."""
        return 0 < self.num_adapters * _MANY_ROWS <= self.size


@dataclass(frozen=True)
class GraphBuckets:
    """Ascending. A kernel's grid covers its bucket: programs for what a step has not end at once,
    but there must not be too many of them."""

    sizes: tuple[int, ...]
    num_blocks: tuple[int, ...]
    ranks: tuple[int, ...]

    @staticmethod
    def of(max_running: int, max_context: int, page_tokens: int) -> GraphBuckets:
        """For all steps of an engine."""
        contexts = sorted({min(_SHORT_CONTEXT_TOKENS, max_context), max_context})
        return GraphBuckets(
            tuple(_sizes(max_running)),
            tuple(dict.fromkeys(-(-tokens // page_tokens) for tokens in contexts)),
            _TYPICAL_RANKS,
        )

    @property
    def variants(self) -> list[Variant]:
        """The largest first: the smaller ones then find their memory in what those left."""
        found: list[Variant] = []
        for size, blocks in itertools.product(reversed(self.sizes), reversed(self.num_blocks)):
            adapters = itertools.product(reversed(self.ranks), reversed(_numbers_of_adapters(size)))
            found += [Variant(size, blocks, *each) for each in adapters]
            found.append(Variant(size, blocks))
        return found

    def variant(
        self, size: int, num_blocks: int, rank: int = 0, num_adapters: int = 0
    ) -> Variant | None:
        """The smallest that holds such a step; None when none does. rank: 0 for none."""
        rows = _least(self.sizes, size)
        blocks = _least(self.num_blocks, num_blocks)
        if rows is None or blocks is None:
            return None
        if not rank:
            return Variant(rows, blocks)
        ranks = _least(self.ranks, rank)
        adapters = _least(_numbers_of_adapters(rows), num_adapters)
        if ranks is None or adapters is None:
            return None
        return Variant(rows, blocks, ranks, adapters)


def _sizes(most: int) -> Iterable[int]:
    """1, 2, 4, 8, 16, 24, 32, 48, 64, 96, … and `most` itself."""
    size = 0
    for size in _SMALL_SIZES:
        if size >= most:
            break
        yield size
    while size < most:
        step = next(step for step, limit in _STEPS if size < limit)
        size = (size // step + 1) * step
        if size < most:
            yield size
    yield most


def _numbers_of_adapters(size: int) -> tuple[int, ...]:
    return (1, size // _FEW, size) if size >= _MANY_ROWS else (size,)


def _least(ascending: tuple[int, ...], wanted: int) -> int | None:
    return next((each for each in ascending if each >= wanted), None)
