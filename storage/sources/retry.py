"""Patience with a source: how long, how often, and with what pauses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from storage.errors import SourceTimeoutError, SourceUnavailableError, excerpt

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. connect_s: for a connection. stall_s: without a byte, after which an attempt is
    given up. attempt_s: for one attempt. total_s: for all of them. max_attempts: in a row that
    bring nothing. The pause after the n-th is drawn from 0 to first_pause_s * 2^(n-1), at most
    max_pause_s (full jitter: Marc Brooker, "Exponential Backoff And Jitter", AWS 2015)."""

    connect_s: float = 10.0
    stall_s: float = 20.0
    attempt_s: float = 300.0
    total_s: float = 600.0
    max_attempts: int = 5
    first_pause_s: float = 0.25
    max_pause_s: float = 8.0


class TransientError(Exception):
    """An attempt failed in a way that may pass. progressed: it brought something that is kept.
    retry_after_s: what the source asked for."""

    def __init__(
        self, problem: str, *, progressed: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.progressed = progressed
        self.retry_after_s = retry_after_s


async def patiently(what: str, patience: Patience, attempt: Callable[[], Awaitable[T]]) -> T:
    """What `attempt` returns once it does not raise TransientError. `what`: for messages.

    Raises: SourceUnavailableError, SourceTimeoutError; whatever else `attempt` raises.
    """
    problem = "no answer"
    failures = 0
    try:
        async with asyncio.timeout(patience.total_s):
            while True:
                attempt_timeout = asyncio.timeout(patience.attempt_s)
                try:
                    async with attempt_timeout:
                        return await attempt()
                except TransientError as error:
                    problem = error.problem
                    asked_s = error.retry_after_s or 0.0
                    failures = 1 if error.progressed else failures + 1
                except TimeoutError:
                    if not attempt_timeout.expired():
                        raise
                    problem = f"no end of an attempt within {patience.attempt_s:g} s"
                    asked_s = 0.0
                    failures += 1
                if failures >= patience.max_attempts:
                    raise SourceUnavailableError(
                        f"source {excerpt(what)} failed {failures} times in a row, at last: "
                        f"{problem}; it will be tried again when asked for again",
                        metadata={"problem": problem[:200]},
                    )
                longest_s = min(patience.first_pause_s * 2 ** (failures - 1), patience.max_pause_s)
                pause_s = random.uniform(0.0, longest_s)
                await asyncio.sleep(max(pause_s, min(asked_s, patience.max_pause_s)))
    except TimeoutError:
        raise SourceTimeoutError(
            f"source {excerpt(what)} was not read within {patience.total_s:g} s (last: {problem}); "
            "it will be tried again when asked for again",
            metadata={"problem": problem[:200]},
        ) from None
