"""Which decode steps are captured: a graph has one size, and serves every step that fits in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from kernels.lora.plan import MAX_SLICES

_SMALL_SIZES = (1, 2, 4)
_STEPS = ((8, 32), (16, 64), (32, 256), (64, 1 << 30))  # multiples of the first, up to the second
_TYPICAL_RANKS = (16, 64, 256)  # of all projections of a group
_SHORT_CONTEXT_TOKENS = 8192


class Variant(NamedTuple):
    """What one graph is for."""

    size: int  # rows
    num_blocks: int  # of the longest sequence
    total_rank: int  # of the largest projection group of any adapter; 0: without adapters


@dataclass(frozen=True)
class GraphBuckets:
    """Ascending. A kernel's grid covers its bucket: programs for what a step has not end at once,
    but there must not be too many of them."""

    sizes: tuple[int, ...]
    num_blocks: tuple[int, ...]
    total_ranks: tuple[int, ...]

    @staticmethod
    def of(max_running: int, max_context: int, page_tokens: int) -> GraphBuckets:
        """For all steps of an engine."""
        contexts = sorted({min(_SHORT_CONTEXT_TOKENS, max_context), max_context})
        return GraphBuckets(
            tuple(_sizes(max_running)),
            tuple(dict.fromkeys(-(-tokens // page_tokens) for tokens in contexts)),
            tuple(MAX_SLICES * rank for rank in _TYPICAL_RANKS),
        )

    @property
    def variants(self) -> list[Variant]:
        """The largest first: the smaller ones then find their memory in what those left."""
        return [
            Variant(*each)
            for each in itertools.product(
                reversed(self.sizes), reversed(self.num_blocks), (*reversed(self.total_ranks), 0)
            )
        ]

    def variant(self, size: int, num_blocks: int, total_rank: int) -> Variant | None:
        """The smallest that holds such a step; None when none does. total_rank: 0 for none."""
        rows = _least(self.sizes, size)
        blocks = _least(self.num_blocks, num_blocks)
        rank = _least(self.total_ranks, total_rank) if total_rank else 0
        if rows is None or blocks is None or rank is None:
            return None
        return Variant(rows, blocks, rank)


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


def _least(ascending: tuple[int, ...], wanted: int) -> int | None:
    return next((each for each in ascending if each >= wanted), None)
