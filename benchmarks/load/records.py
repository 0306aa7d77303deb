"""What was seen of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True)
class Record:
    """Times are seconds since the phase's start, on the client's clock.

    due_s: when it was to be sent; in a closed loop, when it was. Latencies count from `due_s`, so
    that a client or a server that lags cannot hide its queue.
    token_s, token_counts: arrival and number of tokens of each chunk that brought any.
    """

    index: int
    adapter: str
    num_prompt_tokens: int
    num_wanted_tokens: int
    due_s: float
    sent_s: float = 0.0
    done_s: float | None = None
    token_s: list[float] = field(default_factory=list[float])
    token_counts: list[int] = field(default_factory=list[int])
    queue_s: float | None = None
    adapter_load_s: float | None = None
    error: str = ""
    error_message: str = ""

    @property
    def num_tokens(self) -> int:
        return sum(self.token_counts)

    @property
    def completed(self) -> bool:
        return self.done_s is not None and not self.error

    @property
    def ttft_s(self) -> float | None:
        return self.token_s[0] - self.due_s if self.token_s else None

    @property
    def latency_s(self) -> float | None:
        return None if self.done_s is None else self.done_s - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Between chunks, as a reader feels them."""
        return [after - before for before, after in pairwise(self.token_s)]

    @property
    def time_per_token_s(self) -> float | None:
        """After the first chunk."""
        rest = sum(self.token_counts[1:])
        return (self.token_s[-1] - self.token_s[0]) / rest if rest else None
