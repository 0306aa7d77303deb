"""A running phase in numbers, for whoever shows it."""

from __future__ import annotations

import time
from bisect import insort
from collections import Counter, deque
from dataclasses import dataclass, field

from benchmarks.load.records import Record
from benchmarks.load.workload import Phase

WINDOW_S = 1.0
HISTORY = 60


@dataclass
class Progress:
    """Follows a driver by its `observe`. tokens_per_s: of each past window, the newest last."""

    phase: Phase
    position: str  # "2/6"
    num_tokens: int = 0
    num_completed: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])
    ttft_s: list[float] = field(default_factory=list[float])  # ascending
    tokens_per_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=HISTORY))
    started_s: float = field(default_factory=time.perf_counter)
    _seen: dict[int, int] = field(default_factory=dict[int, int])  # index -> tokens counted
    _window_start_s: float = field(default_factory=time.perf_counter)
    _window_tokens: int = 0

    @property
    def num_running(self) -> int:
        return len(self._seen)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started_s

    def percentile(self, share: float) -> float | None:
        """Of the times to first token so far, in seconds."""
        return (
            self.ttft_s[min(len(self.ttft_s) - 1, int(share * len(self.ttft_s)))]
            if (self.ttft_s)
            else None
        )

    def observe(self, record: Record) -> None:
        ended = record.completed or bool(record.error)
        before = self._seen.get(record.index)
        if before is None:
            before = 0
        new = record.num_tokens - before if ended else self._newest(record)
        if not before and new and record.ttft_s is not None:
            insort(self.ttft_s, record.ttft_s)
        self._count(new)
        if not ended:
            self._seen[record.index] = before + new
            return
        self._seen.pop(record.index, None)
        if record.error:
            self.errors[record.error] += 1
        else:
            self.num_completed += 1

    @staticmethod
    def _newest(record: Record) -> int:
        """Tokens of the chunk that it is called for: summing all of them each time would make the
        client slower with every token."""
        return record.token_counts[-1] if record.token_counts else 0

    def _count(self, num_tokens: int) -> None:
        now_s = time.perf_counter()
        self.num_tokens += num_tokens
        self._window_tokens += num_tokens
        elapsed_s = now_s - self._window_start_s
        if elapsed_s >= WINDOW_S:
            self.tokens_per_s.append(self._window_tokens / elapsed_s)
            self._window_start_s, self._window_tokens = now_s, 0
