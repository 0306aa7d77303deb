"""The masks of a step's constrained rows, and following their grammars token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dataplane.constraints.budget import MaskBudget
from dataplane.constraints.limits import mask_cpu_s
from dataplane.engine.mask_threads import MaskThreads
from dataplane.engine.sequence import Sequence
from dataplane.errors import ConstraintError

_Words = np.ndarray[Any, np.dtype[np.int32]]
_ALL = np.int32(-1)
_NONE: frozenset[int] = frozenset()


_SLOW_S = 0.0003
"""A mask that took more than this is worth handing the next one of its sequence to a thread."""


@dataclass
class _Fill:
    """One row of the mask, and what came of it."""

    row: _Words
    sequence: Sequence
    cpu_s: float = 0.0
    error: Exception | None = None


class Masks:
    """Fills them, counts what that takes, and ends requests whose grammars take too much of it."""

    def __init__(
        self, vocab_size: int, eos_token_ids: frozenset[int], clock: Callable[[], float]
    ) -> None:
        self._num_words = -(-vocab_size // 32)
        self._eos = eos_token_ids
        self._clock = clock
        self._budget = MaskBudget(mask_cpu_s(vocab_size))
        self._threads = MaskThreads()
        self.num_filled = 0
        self.fill_s = 0.0

    def close(self) -> None:
        self._threads.close()

    def of(
        self, sequences: list[Sequence], alive: Collection[int]
    ) -> tuple[_Words, list[tuple[Sequence, Exception]]]:
        """[len(sequences), ceil(vocab / 32)] for the token that follows those known, and those
        whose grammar cannot be followed any more. alive: handles; what the others get is dropped,
        so anything goes there, as for those that fail."""
        began_s = time.perf_counter()
        words = np.empty((len(sequences), self._num_words), dtype=np.int32)
        fills: list[_Fill] = []
        for row, sequence in zip(words, sequences, strict=True):
            if sequence.handle in alive:
                fills.append(_Fill(row, sequence))
            else:
                row[:] = _ALL
        slow = [each for each in fills if each.sequence.mask_cpu_s > _SLOW_S]
        for fill in fills:
            if fill.sequence.mask_cpu_s <= _SLOW_S:
                self._run(fill)
        self._threads.run([partial(self._run, fill) for fill in slow])
        for fill in fills:
            self._budget.add(fill.sequence.handle, fill.cpu_s)
        self.num_filled += len(fills)
        failed = [(each.sequence, each.error) for each in fills if each.error is not None]
        staying = {each.sequence.handle: each.sequence for each in fills if each.error is None}
        failed += self._too_complex(staying, alive)
        self.fill_s += time.perf_counter() - began_s
        return words, failed

    def _run(self, fill: _Fill) -> None:
        """On any thread."""
        began_cpu_s = time.thread_time()
        try:
            self._fill(fill.row, fill.sequence)
        except Exception as error:
            fill.row[:] = _ALL
            fill.error = error
        fill.cpu_s = fill.sequence.mask_cpu_s = time.thread_time() - began_cpu_s

    def push(self, sequence: Sequence, token_id: int) -> None:
        """Its next token was read. Raises: ConstraintError."""
        assert sequence.matcher is not None
        began_cpu_s = time.thread_time()
        sequence.matcher.push([token_id])
        self._budget.add(sequence.handle, time.thread_time() - began_cpu_s)

    def _too_complex(
        self, present: dict[int, Sequence], alive: Collection[int]
    ) -> list[tuple[Sequence, Exception]]:
        ended: list[tuple[Sequence, Exception]] = []
        for handle, taken_s in self._budget.leaving(present, alive, self._clock()):
            message = (
                f"finding the tokens that may follow took {taken_s:.2f} s more than"
                f" {self._budget.mask_cpu_s:.2g} s for each; make the constraint simpler"
            )
            metadata = {"field": "sampling.constraint"}
            error = ConstraintError("CONSTRAINT_TOO_COMPLEX", message, metadata)
            ended.append((present[handle], error))
        return ended

    def _fill(self, row: _Words, sequence: Sequence) -> None:
        matcher, sampling = sequence.matcher, sequence.sampling
        assert matcher is not None
        matcher.fill(row)
        banned = self._eos if sampling.ignore_eos else _NONE
        if sequence.num_output < sampling.min_tokens:
            banned = banned | self._eos | frozenset(sampling.stop_token_ids)
        if banned:
            _leave_out(row, banned)


def _leave_out(row: _Words, token_ids: frozenset[int]) -> None:
    """Unless nothing would be left: the grammar goes first."""
    words = row.view(np.uint32)
    before = {token_id // 32: words[token_id // 32] for token_id in token_ids}
    for token_id in token_ids:
        words[token_id // 32] &= ~np.uint32(1 << (token_id % 32))
    if not words.any():
        for at, word in before.items():
            words[at] = word
