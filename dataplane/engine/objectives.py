"""When a request's time is over, and when it can no longer be met.

A waiting request is hopeless when even started now, alone, it would miss its objective: the rest of
its adapter's load, its prefill less what is cached, and the tokens it generates for certain, by the
measured `CostModel`. Nothing is hopeless before there are measurements, and nothing without an
objective ever is; a probe is only once its time is over.
"""

from __future__ import annotations

import math

from dataplane.cost_model import Cost, CostModel
from dataplane.engine.sequence import Sequence
from dataplane.errors import DeadlineError, HopelessError
from dataplane.pool.lazy_heap import LazyHeap

_MAX_AT_ONCE = 128


class Objectives:
    """Deadlines of running requests, and latest starts of waiting ones, soonest first."""

    def __init__(self, costs: CostModel, max_batch_tokens: int) -> None:
        self._costs = costs
        self._max_batch_tokens = max_batch_tokens
        self._due: LazyHeap[Sequence] = LazyHeap()

    def wait(self, sequence: Sequence, ready_in_s: float, num_cached: int) -> None:
        """Watches a waiting request.

        ready_in_s: until its adapter is at hand. num_cached: tokens that need no computing.
        """
        latest_s = self.latest_start_s(sequence, ready_in_s, num_cached)
        if latest_s is not None:
            self._due.push(sequence, latest_s)

    def start(self, sequence: Sequence) -> None:
        """It runs: from now on only its deadline ends it."""
        if sequence.deadline_s is None:
            self._due.discard(sequence)
        else:
            self._due.push(sequence, sequence.deadline_s)

    def end(self, sequence: Sequence) -> None:
        self._due.discard(sequence)

    @property
    def next_due_s(self) -> float | None:
        entry = self._due.peek()
        return entry[0] if entry else None

    def due(self, now_s: float) -> list[Sequence]:
        """Takes out those to look at now; who lives on is watched again by `wait` or `start`. When
        very many are due, the rest must wait for the next step, lest this one take long."""
        due: list[Sequence] = []
        while len(due) < _MAX_AT_ONCE and (entry := self._due.peek()) and entry[0] <= now_s:
            due.append(self._due.pop())
        return due

    def is_hopeless(
        self, sequence: Sequence, now_s: float, ready_in_s: float, num_cached: int
    ) -> bool:
        latest_s = self.latest_start_s(sequence, ready_in_s, num_cached)
        return latest_s is not None and now_s > latest_s

    def latest_start_s(
        self, sequence: Sequence, ready_in_s: float, num_cached: int
    ) -> float | None:
        """The last moment at which it is not hopeless; None without an objective. A load goes on by
        itself: it takes from the time left only what it lasts beyond now."""
        first_s = decode_s = 0.0
        if not sequence.is_probe:
            first_s = ready_in_s + self._prefill_s(sequence, num_cached)
            decode_s = self._decode_s(sequence)
        return min(_ends_s(sequence, first_s, decode_s), default=None)

    def is_over(self, sequence: Sequence, now_s: float) -> bool:
        """Its own time has passed, whatever anything costs."""
        return now_s > min(_ends_s(sequence, 0.0, 0.0), default=math.inf)

    def dearest(self, sequence: Sequence, load: tuple[Cost, float] | None, num_cached: int) -> Cost:
        """Which cost takes most of its time. load: of its adapter, the tier and the seconds."""
        parts: dict[Cost, float] = {
            "prefill": self._prefill_s(sequence, num_cached),
            "decode": self._decode_s(sequence) if sequence.deadline_s is not None else 0.0,
        }
        if load is not None:
            parts[load[0]] = load[1]
        return max(parts, key=lambda each: parts[each])

    def _prefill_s(self, sequence: Sequence, num_cached: int) -> float:
        return self._costs.prefill_s(len(sequence.tokens) - num_cached, self._max_batch_tokens)

    def _decode_s(self, sequence: Sequence) -> float:
        """Of the tokens after the first that it generates for certain, as fast as drafts make it
        for others."""
        more = max(0, sequence.min_output - sequence.num_output - 1)
        return more * self._costs.step_s(1) / self._costs.gain


def _ends_s(sequence: Sequence, first_s: float, decode_s: float) -> list[float]:
    """When it must begin to have its first token and its last in time, if they take so long."""
    ends_s: list[float] = []
    if sequence.first_token_by_s is not None and not sequence.num_output:
        ends_s.append(sequence.first_token_by_s - first_s)
    if sequence.deadline_s is not None:
        ends_s.append(sequence.deadline_s - first_s - decode_s)
    return ends_s


def deadline_error(sequence: Sequence, now_s: float) -> DeadlineError:
    return DeadlineError(
        "DEADLINE_EXCEEDED",
        f"the deadline passed {now_s - (sequence.deadline_s or now_s):.3f} s ago with"
        f" {sequence.num_output} of {sequence.sampling.max_tokens} tokens generated",
        {"num_generated_tokens": str(sequence.num_output)},
    )


def hopeless_error(
    sequence: Sequence, now_s: float, ready_in_s: float, retry_after_s: float
) -> HopelessError:
    waited_s = now_s - sequence.arrival_s
    first_s, last_s = sequence.first_token_by_s, sequence.deadline_s
    metadata = {"waited_s": f"{waited_s:.3f}", "adapter_ready_in_s": f"{ready_in_s:.3f}"}
    if first_s is not None:
        metadata["first_token_in_s"] = f"{first_s - now_s:.3f}"
    if last_s is not None:
        metadata["deadline_in_s"] = f"{last_s - now_s:.3f}"
    return HopelessError(
        f"after {waited_s:.3f} s in the queue the request can no longer meet its objective; try"
        " again later or elsewhere, or allow it more time",
        metadata,
        retry_after_s,
    )
