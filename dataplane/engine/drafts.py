"""Guessing how a sequence goes on: as it did the last time that it came by here (prompt lookup).

Semantics:
    the last 4, else 3, else 2 tokens are looked for among all tokens before them, the last place
    counts; what stood behind that place is the guess, and goes on with itself at the end
    while guesses from 4 known tokens on are right, the place is kept: it matches ever longer
No model, no device, no clock. Nothing depends on whether guesses are used: each is held against the
token that came, so a sequence that does not draft learns what its drafts would be worth.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dataplane.sampling.sampler import Sampled

_SHORTEST, _LONGEST = 2, 4
_MAX_INDEXED = 1 << 14  # tokens, the last ones, when it begins
_SLOTS_PER_TOKEN = 4  # for three entries each
# Odd multipliers of the token that is so many places before the end (Knuth's multiplicative hash).
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
_MASK = (1 << 64) - 1
_LEAST = 0.1  # chance that is worth a thought
_KEEP = 0.9  # weight of the past at each guess
# That a guess is right, by `_level`, before any was seen: low, as seeing some first costs nothing.
_FIRST = (0.2, 0.25, 0.4, 0.8)


class Drafts:
    """Of one sequence, whose `tokens` only grow. Memory is bounded whatever its length: places are
    kept in a table of fixed size, where a newer one may take the slot of an older one."""

    def __init__(self, tokens: list[int], max_length: int) -> None:
        """max_length: that `tokens` may come to."""
        self._tokens = tokens
        size = _SLOTS_PER_TOKEN * min(max(max_length, 16), _MAX_INDEXED)
        num_bits = (size - 1).bit_length()
        self._shift = 64 - num_bits
        self._places = array("i", bytes(4 << num_bits))  # what follows an n-gram; 0: none
        self._source = -1  # the place of what is guessed to come next; -1: no guess
        self._matched = 0  # tokens before it that are the last ones, as far as is known
        self._right = list(_FIRST)
        self._size = self._index_all_but_one()

    def follow(self) -> None:
        """Takes in what was appended to `tokens`; a few microseconds for each token."""
        tokens = self._tokens
        while self._size < len(tokens):
            self._next(tokens[self._size])

    def chances(self, num_unread: int, most: int) -> list[float]:
        """Of up to `most` drafts behind `num_unread` tokens that nobody has read yet: that each is
        accepted, which takes all before it to be, as long as it is not quite unlikely. Empty
        without a guess. Of all that `follow` took in."""
        if self._source < 0:
            return []
        chances: list[float] = []
        chance = 1.0
        for at in range(num_unread + most):
            chance *= self._right[_level(self._matched + at)]
            if chance < _LEAST:
                break
            if at >= num_unread:
                chances.append(chance)
        return chances

    def propose(self, num_unread: int, count: int) -> list[int]:
        """The guesses that `chances` are about."""
        period = self._size - self._source
        first = range(num_unread, num_unread + count)
        return [self._tokens[self._source + at % period] for at in first]

    def _next(self, token: int) -> None:
        tokens, source = self._tokens, self._source
        if source >= 0:
            is_right = tokens[source] == token
            level = _level(self._matched)
            self._right[level] += (1.0 - _KEEP) * (is_right - self._right[level])
            self._matched += 1
            self._source = source + 1 if is_right and self._matched > _LONGEST else -1
        self._size += 1
        slots = self._slots()
        if self._source < 0:
            self._look(slots)
        for slot in slots:
            self._places[slot] = self._size

    def _slots(self) -> list[int]:
        """Of the last 2, 3 and 4 tokens taken in, as far as there are so many."""
        tokens, size = self._tokens, self._size
        slots: list[int] = []
        total = 0
        for at in range(min(_LONGEST, size)):
            total += (tokens[size - 1 - at] + 1) * _FACTORS[at]
            if at:
                slots.append((total & _MASK) >> self._shift)
        return slots

    def _look(self, slots: list[int]) -> None:
        tokens, size = self._tokens, self._size
        for count in range(len(slots) + 1, _SHORTEST - 1, -1):
            place = self._places[slots[count - _SHORTEST]]
            if place >= count and tokens[place - count : place] == tokens[size - count : size]:
                self._source, self._matched = place, count
                return

    def _index_all_but_one(self) -> int:
        """Of the tokens that there are, all but the last, at once. Returns their number."""
        end = max(0, len(self._tokens) - 1)
        begin = max(0, end - _MAX_INDEXED)
        ids = np.array(self._tokens[begin:end], dtype=np.uint64) + np.uint64(1)
        places: np.ndarray[Any, np.dtype[np.int32]] = np.frombuffer(self._places, dtype=np.int32)
        for count in range(_SHORTEST, min(_LONGEST, len(ids)) + 1):
            num = len(ids) - count + 1
            total = np.zeros(num, dtype=np.uint64)
            for at in range(count):
                first = count - 1 - at
                total += ids[first : first + num] * np.uint64(_FACTORS[at])
            # Of equal slots the last one stays, as if they had come one by one.
            slots = (total >> np.uint64(self._shift)).astype(np.int64)
            np.maximum.at(places, slots, np.arange(begin + count, end + 1, dtype=np.int32))
        return end


def agreed(drafts: tuple[int, ...], sampled: Seq[Sampled]) -> Seq[Sampled]:
    """What a sequence would have got token by token: of the tokens sampled at its last one and at
    each of its drafts, those up to the first that is not what the draft after it says."""
    for at, draft in enumerate(drafts):
        if sampled[at].token_id != draft:
            return sampled[: at + 1]
    return sampled


def _level(matched: int) -> int:
    """Which of `_FIRST`: 2, 3, 4 to 7, or more tokens that match before a guess."""
    if matched < _LONGEST:
        return matched - _SHORTEST
    return 2 if matched < 2 * _LONGEST else 3
