"""What a schedule is made of."""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, start + num_tokens) of a running sequence, its next pending ones."""

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool  # they are all that was pending, so the step gives it its next token
    num_scored: int = 0  # the first of them, of which the token that comes next is to be scored

    @property
    def num_logits(self) -> int:
        """Of its tokens, the scored ones and then the last if it samples, logits are needed."""
        return self.num_scored + self.samples

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True)
class Failure:
    sequence: Sequence
    error: Exception
