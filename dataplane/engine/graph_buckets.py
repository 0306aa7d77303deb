"""Which steps are captured: a graph has one size, and serves every step that fits in it.

A token of a prompt takes a row as a decoding sequence does. Rows beyond the most sequences that can
run are for prompts, up to a length of context at which their attention, row by row, is cheap.
"""

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
_PROMPT_SIZES = (16, 32)  # then multiples of the next
_PROMPT_STEP = 64
_PROMPT_TOKENS = 192  # of a step, beside as many sequences as can run
_PROMPT_CONTEXT_TOKENS = 2048  # not measured: it bounds the grid of attention


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
    but there must not be too many of them.

    sizes: rows, up to one for each sequence that can run. prompt_sizes: rows beyond, of steps whose
    longest sequence has no more than prompt_blocks.
    """

    sizes: tuple[int, ...]
    num_blocks: tuple[int, ...]
    ranks: tuple[int, ...]
    prompt_sizes: tuple[int, ...] = ()
    prompt_blocks: int = 0

    @staticmethod
    def of(
        max_running: int, max_context: int, page_tokens: int, max_batch_tokens: int
    ) -> GraphBuckets:
        """For an engine whose steps have at most so many sequences and tokens."""
        contexts = sorted({min(_SHORT_CONTEXT_TOKENS, max_context), max_context})
        return GraphBuckets(
            tuple(_sizes(max_running)),
            tuple(dict.fromkeys(-(-tokens // page_tokens) for tokens in contexts)),
            _TYPICAL_RANKS,
            tuple(_prompt_sizes(max_running, max_batch_tokens)),
            -(-min(_PROMPT_CONTEXT_TOKENS, max_context) // page_tokens),
        )

    @property
    def all_sizes(self) -> tuple[int, ...]:
        return (*self.sizes, *self.prompt_sizes)

    @property
    def most_rows(self) -> int:
        return self.all_sizes[-1]

    @property
    def contexts(self) -> tuple[int, ...]:
        """Every number of blocks that some graph is for, ascending."""
        blocks = {*self.num_blocks, *((self.prompt_blocks,) if self.prompt_sizes else ())}
        return tuple(sorted(blocks))

    @property
    def variants(self) -> list[Variant]:
        """The largest first: the smaller ones then find their memory in what those left."""
        found: list[Variant] = []
        for size in reversed(self.all_sizes):
            for blocks in reversed(self._blocks_of(size)):
                numbers = self._numbers_of_adapters(size)
                adapters = itertools.product(reversed(self.ranks), reversed(numbers))
                found += [Variant(size, blocks, *each) for each in adapters]
                found.append(Variant(size, blocks))
        return found

    def variant(
        self, size: int, num_blocks: int, rank: int = 0, num_adapters: int = 0
    ) -> Variant | None:
        """The smallest that holds such a step; None when none does. rank: 0 for none."""
        rows = _least(self.all_sizes, size)
        if rows is None:
            return None
        blocks = _least(self._blocks_of(rows), num_blocks)
        if blocks is None:
            return None
        if not rank:
            return Variant(rows, blocks)
        ranks = _least(self.ranks, rank)
        adapters = _least(self._numbers_of_adapters(rows), num_adapters)
        if ranks is None or adapters is None:
            return None
        return Variant(rows, blocks, ranks, adapters)

    def _blocks_of(self, size: int) -> tuple[int, ...]:
        return self.num_blocks if size <= self.sizes[-1] else (self.prompt_blocks,)

    def _numbers_of_adapters(self, size: int) -> tuple[int, ...]:
        if size > self.sizes[-1]:  # of the sequences that run, each has one
            return tuple(sorted({1, self.sizes[-1]}))
        return (1, size // _FEW, size) if size >= _MANY_ROWS else (size,)


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


def _prompt_sizes(max_running: int, max_batch_tokens: int) -> Iterable[int]:
    """16, 32, 64, 128, 192, … beyond `max_running`."""
    most = min(max_running + _PROMPT_TOKENS, max_batch_tokens)
    sizes = (*_PROMPT_SIZES, *range(_PROMPT_STEP, most + 1, _PROMPT_STEP))
    return (size for size in sizes if max_running < size <= most)


def _least(ascending: tuple[int, ...], wanted: int) -> int | None:
    return next((each for each in ascending if each >= wanted), None)
