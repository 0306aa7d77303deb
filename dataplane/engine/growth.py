"""How many more pages running sequences will come to need: admission keeps them free.

Who is admitted on its prompt alone is preempted when all grow, and computed again: under pressure
that can cost more than the work itself. How long an answer becomes is known only at its end, so it
is taken to be the share of `max_tokens` that answers here came to so far. A wrong guess costs a
preemption or an early wait, never more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from dataplane.engine.sequence import Sequence

_KEEP = 0.98  # weight of the past at each ended sequence
_DOUBT = 2.0  # weight of "no answer at all" before any was seen: at first admission is generous


class Growth:
    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._weight = _DOUBT
        self._shares = 0.0
        self._num_ended = self._prompts = self._outputs = self._computed = 0.0

    def ended(self, sequence: Sequence) -> None:
        """It has left the batch for good, finished or not wanted any more."""
        share = sequence.num_output / max(sequence.sampling.max_tokens, 1)
        self._weight = _KEEP * self._weight + 1.0
        self._shares = _KEEP * self._shares + min(share, 1.0)
        self._num_ended = _KEEP * self._num_ended + 1.0
        self._prompts = _KEEP * self._prompts + sequence.num_prompt
        num_computed = max(0, sequence.num_prompt - sequence.num_cached)
        self._computed = _KEEP * self._computed + num_computed
        self._outputs = _KEEP * self._outputs + sequence.num_output

    @property
    def usual_prompt(self) -> float:
        """Mean number of prompt tokens; 0 before any sequence ended."""
        return self._prompts / self._num_ended if self._num_ended else 0.0

    @property
    def computed_share(self) -> float:
        """Of prompt tokens, that no cached block spared computing."""
        return self._computed / self._prompts if self._prompts else 1.0

    @property
    def usual_output(self) -> float:
        """Mean number of generated tokens; 0 before any sequence ended."""
        return self._outputs / self._num_ended if self._num_ended else 0.0

    def expected_more(self, sequence: Sequence) -> int:
        """Tokens that it is expected to generate from now on, at least 1."""
        share = self._shares / self._weight
        expected = max(sequence.min_output, math.ceil(share * sequence.sampling.max_tokens))
        left = sequence.max_length - sequence.num_prompt
        return max(1, min(expected, left) - sequence.num_output - sequence.num_unread)

    def pages(self, sequences: Iterable[Sequence]) -> int:
        """The most pages, beyond those that they hold, that all together will need at once.

        Each grows by a token a step until its expected end, when its pages come free: the most is
        needed just before one of these ends (as LightLLM's scheduler reasons). Last blocks that
        grow are taken to begin with one token, which is at most a page too much for each.
        """
        size, expected_share = self._page_tokens, self._shares / self._weight
        held = most = num_tokens = 0
        lives: list[tuple[int, int]] = []
        for each in sequences:  # at each admission, all that run: nothing is asked for twice
            length = len(each.tokens)
            expected = math.ceil(expected_share * each.sampling.max_tokens)
            lives.append((max(0, expected - length + each.num_prompt), length))
            held += len(each.block_table)
            most += -(-length // size)
        lives.sort(reverse=True)
        for count, (steps, length) in enumerate(lives, 1):
            num_tokens += length
            if steps:
                pages = (num_tokens + count * (steps + size - 1)) // size
                if pages > most:
                    most = pages
        return max(0, most - held)
