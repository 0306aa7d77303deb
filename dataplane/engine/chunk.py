"""What a schedule is made of."""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.engine.sequence import Sequence

MAX_SCORED = 256
"""Tokens of a step: each is a row of logits, where other tokens of a prompt need none. Also the
most drafts of a step, which has no scored ones then."""


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, start + num_tokens) of a running sequence: its next pending ones, and behind
    them `drafts`, which are guesses."""

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool  # they are all that was pending, so the step gives it its next token
    num_scored: int = 0  # the first of them, of which the token that comes next is to be scored
    drafts: tuple[int, ...] = ()  # only behind one token

    @property
    def num_sampled(self) -> int:
        """Its tokens that another one is sampled behind: the last pending one and each draft."""
        return self.samples + len(self.drafts)

    @property
    def num_logits(self) -> int:
        """Of its tokens, logits are needed of the scored ones and then of the sampled ones."""
        return self.num_scored + self.num_sampled

    @property
    def num_before_adapter(self) -> int:
        """The first of them, which the base model computes though the sequence has an adapter."""
        num_before = self.sequence.active_from - self.start
        return min(num_before, self.num_tokens) if num_before > 0 else 0

    @property
    def rank_in_step(self) -> tuple[str, int]:
        """By which a step's chunks are ordered: those of one adapter are adjacent, and so are the
        tokens that it applies to, unless it begins within several of them."""
        num_before = self.num_before_adapter
        return self.sequence.queue_key, (num_before == 0) + (num_before < self.num_tokens)

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def sure_end(self) -> int:
        """Where its drafts begin."""
        return self.end - len(self.drafts)


@dataclass(frozen=True)
class Failure:
    sequence: Sequence
    error: Exception
