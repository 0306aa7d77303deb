"""The masks of a step's constrained rows, and following their grammars token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from dataplane.constraints.budget import MaskBudget
from dataplane.constraints.limits import MASK_CPU_S
from dataplane.engine.sequence import Sequence
from dataplane.errors import ConstraintError

_Words = np.ndarray[Any, np.dtype[np.int32]]
_ALL = np.int32(-1)
_NONE: frozenset[int] = frozenset()


class Masks:
    """Fills them, counts what that takes, and ends requests whose grammars take too much of it."""

    def __init__(
        self, vocab_size: int, eos_token_ids: frozenset[int], clock: Callable[[], float]
    ) -> None:
        self._num_words = -(-vocab_size // 32)
        self._eos = eos_token_ids
        self._clock = clock
        self._budget = MaskBudget()
        self.num_filled = 0
        self.fill_s = 0.0

    def of(
        self, sequences: list[Sequence], alive: Collection[int]
    ) -> tuple[_Words, list[tuple[Sequence, Exception]]]:
        """[len(sequences), ceil(vocab / 32)] for the token that follows those known, and those
        whose grammar cannot be followed any more. alive: handles; what the others get is dropped,
        so anything goes there, as for those that fail."""
        began_s = time.perf_counter()
        words = np.empty((len(sequences), self._num_words), dtype=np.int32)
        failed: list[tuple[Sequence, Exception]] = []
        for row, sequence in zip(words, sequences, strict=True):
            if sequence.handle not in alive:
                row[:] = _ALL
                continue
            began_cpu_s = time.thread_time()
            try:
                self._fill(row, sequence)
            except Exception as error:
                row[:] = _ALL
                failed.append((sequence, error))
            self._budget.add(sequence.handle, time.thread_time() - began_cpu_s)
            self.num_filled += 1
        ended = {each.handle for each, _ in failed}
        staying = {
            each.handle: each
            for each in sequences
            if each.handle in alive and each.handle not in ended
        }
        failed += self._too_complex(staying, alive)
        self.fill_s += time.perf_counter() - began_s
        return words, failed

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
                f" {MASK_CPU_S:g} s for each; make the constraint simpler"
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
