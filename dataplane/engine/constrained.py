"""What constrained sequences need around a step: a compiled grammar before they are queued, a mask
before they are sampled, and each token that was read followed in the grammar."""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np

from dataplane.channel import Vocabulary
from dataplane.engine.chunk import Failure
from dataplane.engine.grammars import Grammars, Ready
from dataplane.engine.masks import Masks
from dataplane.engine.refusals import queue_full
from dataplane.engine.sequence import Sequence


class ConstraintReport(NamedTuple):
    """Since the start. Grammars are compiled on a thread, masks made by the step loop."""

    num_grammars: int
    grammar_s: float
    num_masks: int
    mask_s: float


class Constrained:
    """Owns the requests whose grammar is being compiled, and knows which sequences of the newest
    step wait for their mask. One thread makes every call."""

    def __init__(
        self,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_waiting: int,
        on_grammar: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """on_grammar: called from another thread when a grammar was compiled."""
        self._grammars = Grammars(on_grammar)
        self._masks = Masks(vocab_size, eos_token_ids, clock)
        self._max_waiting = max_waiting
        self._unmasked: list[Sequence] = []  # of the newest step, until it is sampled

    @property
    def num_waiting(self) -> int:
        """Requests whose grammar is being compiled."""
        return len(self._grammars)

    def use(self, vocabulary: Vocabulary) -> None:
        """Before the first `add`."""
        self._grammars.use(vocabulary)

    def add(self, sequence: Sequence) -> None:
        """Has its grammar compiled. Raises: QueueFullError."""
        if self.num_waiting >= self._max_waiting:
            raise queue_full(self._max_waiting)
        self._grammars.add(sequence)

    def remove(self, handle: int) -> None:
        """It no longer waits for a grammar; unknown handles are ignored."""
        self._grammars.remove(handle)

    def compiled(self) -> list[Ready]:
        """Those whose wait has ended, once each."""
        return self._grammars.poll() if self._grammars else []

    def launched(self, sampling: Seq[Sequence]) -> bool:
        """A forward pass was launched from which these are sampled. Whether that can be launched at
        once: what a constrained one may choose depends on all its tokens, so those of the step
        before must have been read."""
        assert not self._unmasked
        self._unmasked = [each for each in sampling if each.matcher is not None]
        return not any(each.num_unread for each in self._unmasked)

    def masks(
        self, alive: Collection[int]
    ) -> tuple[np.ndarray[Any, np.dtype[np.int32]], list[Failure]]:
        """The newest step's, as `Pipeline.sample` takes them, and whose grammar cannot be followed
        any more. alive: handles; the others' tokens will be dropped."""
        sequences, self._unmasked = self._unmasked, []
        words, failed = self._masks.of(sequences, alive)
        return words, [Failure(sequence, error) for sequence, error in failed]

    def push(self, sequence: Sequence, token_id: int) -> None:
        """Its next token was read. Raises: ConstraintError."""
        if sequence.matcher is not None:
            self._masks.push(sequence, token_id)

    def close(self) -> None:
        """Ends its threads: the compiling one after what it does, which is waited for a while."""
        self._grammars.stop()
        self._masks.close()

    def report(self) -> ConstraintReport:
        grammars, masks = self._grammars, self._masks
        return ConstraintReport(
            grammars.num_compiled, grammars.compile_s, masks.num_filled, masks.fill_s
        )
