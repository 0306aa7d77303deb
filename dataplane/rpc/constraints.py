"""Constraints of requests: tried out before the engine hears of them, and counted."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from chorale.errors import (
    ChoraleError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)
from dataplane.channel import Vocabulary
from dataplane.constraints.grammar import Grammar
from dataplane.constraints.refusal import shortened, told
from dataplane.constraints.trials import Trials
from dataplane.constraints.verdict import Verdict
from dataplane.rpc.deadline import within

_PREFIX = "chorale_data_plane"
_NUM_TRIALS = 2  # so that one grammar that takes long does not hold up all
_MAX_UNDER_WAY = 64
_MAX_KNOWN = 1024


class Constraints(Collector):
    """Belongs to one event loop. What is found of a grammar is remembered, by its digest; equal
    ones that come meanwhile wait for the same trial. Neither processes nor threads are started
    before the first constraint.

    vocabulary: as the engine was told.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._threads = ThreadPoolExecutor(_NUM_TRIALS, "constraints")
        self._own = threading.local()
        self._trials: list[Trials] = []
        self._is_closed = False
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Future[Verdict]] = {}
        self._requests: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._cpu_s = 0.0

    async def check(self, grammar: Grammar, deadline_s: float | None) -> None:
        """Waits until the grammar was tried out. deadline_s: on the event loop's clock.

        Raises: InvalidArgumentError for one that cannot be compiled or followed,
        FailedPreconditionError when none can with this tokenizer, ResourceExhaustedError when too
        many wait, UnavailableError, DeadlineExceededError.
        """
        self._requests[grammar.kind] += 1
        digest = hashlib.sha256(grammar.text.encode()).digest()
        verdict = self._known.get(digest)
        if verdict is None:
            async with within(deadline_s):
                verdict = await asyncio.shield(self._trial(digest, grammar.text))
        else:
            self._known.move_to_end(digest)
        if verdict.reason:
            raise _error(verdict, grammar.kind)

    def note_failure(self, error: ChoraleError) -> None:
        """Counts a request that failed by its constraint, here or in the engine."""
        if error.reason.startswith("CONSTRAINT"):
            self._failures[error.reason] += 1

    def close(self) -> None:
        """Ends the processes; trials that have not begun are dropped."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for trials in self._trials:
            trials.close()

    def collect(self) -> Iterator[Any]:
        requests = CounterMetricFamily(
            f"{_PREFIX}_constrained_requests",
            "Whose answer must hold to a constraint; refused ones included.",
            labels=("kind",),
        )
        for kind, number in self._requests.items():
            requests.add_metric((kind,), number)
        failures = CounterMetricFamily(
            f"{_PREFIX}_constraint_failures",
            "Requests that failed by their constraint, before or after it was accepted.",
            labels=("reason",),
        )
        for reason, number in self._failures.items():
            failures.add_metric((reason,), number)
        seconds = CounterMetricFamily(
            f"{_PREFIX}_constraint_trial_cpu_seconds",
            "Processor time of trying constraints out; lost trials not included.",
        )
        seconds.add_metric((), self._cpu_s)
        yield from (requests, failures, seconds)

    def _trial(self, digest: bytes, text: str) -> asyncio.Future[Verdict]:
        trial = self._under_way.get(digest)
        if trial is None:
            if len(self._under_way) >= _MAX_UNDER_WAY:
                raise ResourceExhaustedError(
                    "CONSTRAINTS_BUSY",
                    f"{_MAX_UNDER_WAY} new constraints are being compiled; try again later",
                    metadata={"limit": str(_MAX_UNDER_WAY)},
                    retry_after_s=1.0,
                )
            loop = asyncio.get_running_loop()
            trial = loop.run_in_executor(self._threads, self._try_out, text)
            self._under_way[digest] = trial
            trial.add_done_callback(lambda done: self._tried(digest, done))
        return trial

    def _tried(self, digest: bytes, trial: asyncio.Future[Verdict]) -> None:
        del self._under_way[digest]
        if trial.cancelled() or trial.exception() is not None:
            return
        verdict = trial.result()
        self._cpu_s += verdict.cpu_s
        if verdict.reason == "CONSTRAINT_TRIAL_LOST":
            return  # it says nothing about the grammar
        self._known[digest] = verdict
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _try_out(self, text: str) -> Verdict:
        """On a thread of ours."""
        trials: Trials | None = getattr(self._own, "trials", None)
        if trials is None:
            trials = self._own.trials = Trials(self._vocabulary)
            self._trials.append(trials)
            if self._is_closed:  # which was before there was anything to close
                trials.close()
        try:
            return trials.check(text)
        except OSError as error:
            return Verdict("CONSTRAINT_TRIAL_LOST", f"no process can be started: {error}")


def _error(verdict: Verdict, kind: str) -> ChoraleError:
    match verdict.reason:
        case "CONSTRAINTS_UNSUPPORTED":
            return FailedPreconditionError(verdict.reason, verdict.message)
        case "CONSTRAINT_TRIAL_LOST":
            return UnavailableError(verdict.reason, verdict.message, retry_after_s=1.0)
        case reason:
            return told(reason, kind, f"cannot be enforced: {shortened(verdict.message)}")
