"""What is ahead of a request that comes now, played through: a small model of the step loop.

Semantics:
    each step decodes one token of every sequence that has its prompt, and computes up to
    max_batch_tokens less these of the prompts before it, in order
    a waiting request starts as soon as a place and its pages are free and the prompts before it
    leave room in a step
    who ends gives place and pages back
No clock, no randomness: a pure function of the snapshot, bounded in time whatever waits.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_STARTS = 64
"""Waiting requests that are played through; later ones are taken to start at their rate."""

_MAX_TURNS = 500  # of the loop, each a step with prompts or all steps until somebody ends


@dataclass(frozen=True, slots=True)
class Job:
    """A sequence, running or waiting.

    num_pending: tokens to compute before its next token; 1 of one that decodes. num_more: tokens
    that it is expected to generate from now on, at least 1. num_pages: that it holds on average
    until it ends. level: as `waiting` orders. ready_in_s: until its adapter is at hand.
    latest_s: it is given up if it has not started by then; None: never.
    """

    num_pending: int
    num_more: int
    num_pages: int
    level: int = 0
    ready_in_s: float = 0.0
    latest_s: float | None = None


class StepCosts(NamedTuple):
    """decode_s: of a step with so many decoding sequences. A step with prompt tokens takes
    prefill_step_s and prefill_token_s for each of them more."""

    decode_s: Callable[[int], float]
    prefill_step_s: float
    prefill_token_s: float


class ExpectedWait(NamedTuple):
    """Until a request that comes now would start behind all that waits at `level` or above."""

    level: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Ahead:
    """The snapshot. running, waiting: in the order in which they are served. num_pages: that
    sequences can have, those of running ones included. newcomer_pages: of who comes now."""

    running: Sequence[Job]
    waiting: Sequence[Job]
    max_running: int
    max_batch_tokens: int
    num_pages: int
    newcomer_pages: int


def expected_waits(ahead: Ahead, costs: StepCosts) -> tuple[float, list[ExpectedWait]]:
    """Seconds behind what runs alone, and behind each level that waits, the highest first.

    A request whose adapter is not at hand when it is its turn is passed and left out, and so is one
    that is given up by then. Beyond `MAX_STARTS` the rest is taken to go on at the same rate.
    """
    course = _Course(ahead, costs)
    course.go_on_until_free(ahead.newcomer_pages)
    behind_running_s = course.now_s
    waits: list[ExpectedWait] = []
    num_begun = 0
    for at, job in enumerate(ahead.waiting):
        if not course.is_over and num_begun < MAX_STARTS:
            course.go_on_until_free(job.num_pages)
            gives_up = job.latest_s is not None and course.now_s > job.latest_s
            if job.ready_in_s <= course.now_s and not gives_up:
                course.start(job)
            num_begun += 1
        if at + 1 == len(ahead.waiting) or ahead.waiting[at + 1].level != job.level:
            course.go_on_until_free(ahead.newcomer_pages)
            queue_s = (course.now_s - behind_running_s) * (at + 1) / max(num_begun, 1)
            waits.append(ExpectedWait(job.level, behind_running_s + queue_s))
    return behind_running_s, waits


class _Course:
    def __init__(self, ahead: Ahead, costs: StepCosts) -> None:
        self.now_s = 0.0
        self._max_running = ahead.max_running
        self._max_batch_tokens = ahead.max_batch_tokens
        self._costs = costs
        self._free_pages = ahead.num_pages
        self._step = 0
        self._ends: list[tuple[int, int]] = []  # of decoding sequences: (step, pages)
        self._prompts: deque[tuple[int, Job]] = deque()  # (tokens left, whose)
        self._num_prompt_tokens = 0
        self._turns_left = _MAX_TURNS
        for job in ahead.running:
            self.start(job)

    @property
    def is_over(self) -> bool:
        return not self._turns_left

    def start(self, job: Job) -> None:
        self._free_pages -= job.num_pages
        if job.num_pending > 1:
            self._prompts.append((job.num_pending, job))
            self._num_prompt_tokens += job.num_pending
        else:
            heapq.heappush(self._ends, (self._step + job.num_more, job.num_pages))

    def go_on_until_free(self, num_pages: int) -> None:
        """Until a request of so many pages can be part of the next step."""
        while self._num_running and self._turns_left:
            has_place = self._num_running < self._max_running and num_pages <= self._free_pages
            if has_place and self._num_prompt_tokens < self._budget:
                return
            self._go_on()

    @property
    def _num_running(self) -> int:
        return len(self._ends) + len(self._prompts)

    @property
    def _budget(self) -> int:
        return max(1, self._max_batch_tokens - len(self._ends))

    def _go_on(self) -> None:
        self._turns_left -= 1
        num_decode = len(self._ends)
        step_s = self._costs.decode_s(num_decode) if num_decode else 0.0
        if self._prompts:
            num_tokens = min(self._num_prompt_tokens, self._budget)
            self.now_s += step_s + self._costs.prefill_step_s
            self.now_s += num_tokens * self._costs.prefill_token_s
            self._step += 1
            self._compute(num_tokens)
        else:
            num_steps = max(1, self._ends[0][0] - self._step)
            self.now_s += num_steps * step_s
            self._step += num_steps
        while self._ends and self._ends[0][0] <= self._step:
            self._free_pages += heapq.heappop(self._ends)[1]

    def _compute(self, num_tokens: int) -> None:
        self._num_prompt_tokens -= num_tokens
        while num_tokens:
            left, job = self._prompts.popleft()
            if left > num_tokens:
                self._prompts.appendleft((left - num_tokens, job))
                return
            num_tokens -= left
            heapq.heappush(self._ends, (self._step + job.num_more - 1, job.num_pages))
