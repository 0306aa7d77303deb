"""Drafts in every step that can have some, right and wrong ones, whatever they cost."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from dataplane.engine.drafting import Drafting
from dataplane.engine.sequence import Sequence as EngineSequence
from tests.helpers.engine import Rig

_ANY = range(3, 40)


def force_drafts(
    rig: Rig,
    answers: Mapping[int, Sequence[int]],
    *,
    right: float = 0.8,
    most: int = 0,
    seed: int = 0,
) -> None:
    """From now on a sequence's drafts are what `answers` says of its handle, each with the chance
    `right`, else any token. most: of a step; 0: as the rig's engine was made."""
    scheduler = rig.engine._scheduler
    if scheduler._drafting is not None:
        most = scheduler._drafting._max_drafts
    assert most, "the rig does not speculate"
    scheduler._drafting = _Forced(rig, answers, right, random.Random(seed), most)


class _Forced(Drafting):
    def __init__(
        self,
        rig: Rig,
        answers: Mapping[int, Sequence[int]],
        right: float,
        dice: random.Random,
        most: int,
    ) -> None:
        super().__init__(rig.pool, rig.engine._costs, most)
        self._answers, self._right, self._dice = answers, right, dice

    def _chances(self, sequence: EngineSequence) -> list[float]:
        if sequence.drafts is None:
            known: Any = _Known(sequence, self._answers[sequence.handle], self._right, self._dice)
            sequence.drafts = known
        left = sequence.max_length - len(sequence.tokens) - sequence.num_unread - 1
        return [1.0] * self._dice.randrange(max(0, min(self._max_drafts, left)) + 1)

    def _counts(self, chances: Sequence[list[float]], num_decode: int) -> list[int]:
        return [len(each) for each in chances]


class _Known:
    def __init__(
        self, sequence: EngineSequence, answer: Sequence[int], right: float, dice: random.Random
    ) -> None:
        self._sequence, self._answer, self._right, self._dice = sequence, answer, right, dice

    def propose(self, num_unread: int, count: int) -> list[int]:
        first = self._sequence.num_output + num_unread
        drafts = [*self._answer[first : first + count], *[0] * count][:count]
        return [
            each if self._dice.random() < self._right else self._dice.choice(_ANY)
            for each in drafts
        ]
