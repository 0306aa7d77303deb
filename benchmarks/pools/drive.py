"""An open loop through an engine in this process, in real or in simulated time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.errors import BenchError
from benchmarks.load.records import Record
from benchmarks.load.workload import Request
from dataplane.channel import Adapter, Sampling, Submit
from dataplane.engine.engine import Engine

_POLL_S = 0.0005


class Clock(Protocol):
    def now(self) -> float: ...

    def wait(self, until_s: float) -> None:
        """Until then, or until a load may have ended."""
        ...


class RealClock:
    def now(self) -> float:
        return time.monotonic()

    def wait(self, until_s: float) -> None:
        time.sleep(min(max(until_s - self.now(), 0.0), _POLL_S))


@dataclass
class Usage:
    """Over the time in which steps ran: pages in use, and requests that got a token, on average."""

    seconds: float = 0.0
    page_seconds: float = 0.0
    stream_seconds: float = 0.0

    def add(self, seconds: float, num_pages: int, num_streams: int) -> None:
        self.seconds += seconds
        self.page_seconds += seconds * num_pages
        self.stream_seconds += seconds * num_streams

    def report(self) -> dict[str, float]:
        seconds = self.seconds or 1.0
        return {
            "mean_pages_in_use": self.page_seconds / seconds,
            "mean_streams": self.stream_seconds / seconds,
        }


@dataclass(frozen=True)
class Objective:
    """first_token_s: after a request was due; the engine aborts who cannot make it."""

    first_token_s: float


def open_loop(
    engine: Engine,
    clock: Clock,
    requests: Sequence[Request],
    adapters: Mapping[str, Adapter],
    prompt: Callable[[Request], list[int]],
    objective: Objective,
    observe: Callable[[float, float, int], None],
) -> list[Record]:
    """Sends every request when it is due, and runs to the end of all. Requests for what is not
    among `adapters` fail at once.

    observe: told of each step, when it began and ended and how many requests got a token.

    Raises: BenchError when pages are in use then, or the pool's books are wrong.
    """
    start_s = clock.now()
    records = {each.index: _record(each) for each in requests}
    todo = sorted(requests, key=lambda each: (_due(each), each.index), reverse=True)
    while todo or engine.has_work:
        now_s = clock.now() - start_s
        while todo and _due(todo[-1]) <= now_s:
            request = todo.pop()
            record = records[request.index]
            record.sent_s = now_s
            if request.adapter and request.adapter not in adapters:
                record.error = "ADAPTER_TOO_LARGE"
                continue
            engine.submit(_submit(request, adapters, prompt, start_s, objective))
        if engine.has_work:
            before_s = clock.now()
            result = engine.step()
            now_s = clock.now() - start_s
            for output in result.outputs:
                record = records[output.handle]
                record.token_s.append(now_s)
                record.token_counts.append(len(output.token_ids))
                if output.finish:
                    record.done_s = now_s
            for handle, error in result.failures:
                record = records[handle]
                record.error = getattr(error, "reason", type(error).__name__)
                record.error_message = str(error)[:200]
            observe(before_s - start_s, now_s, len(result.outputs))
            if result.outputs or result.failures or clock.now() - before_s > _POLL_S:
                continue
        dues = [start_s + _due(todo[-1])] if todo else []
        if engine.has_work and engine.next_due_s is not None:
            dues.append(engine.next_due_s)
        # Never for no time: what is due at this very moment need not be over yet.
        clock.wait(max(min(dues, default=0.0), clock.now() + _POLL_S))
    check_empty(engine)
    return [records[each.index] for each in requests]


def check_empty(engine: Engine) -> None:
    """Raises: BenchError unless, once the steps in flight have ended, no page is in use and every
    page has exactly one owner."""
    while engine.has_work:
        engine.step()
    report = engine.inspect(0)
    if report.problem or report.num_used_pages:
        raise BenchError(
            "PAGES_LEFT",
            f"after the run {report.num_used_pages} pages are in use: {report.problem[:300]}",
            metadata={"num_used_pages": str(report.num_used_pages)},
        )


def _submit(
    request: Request,
    adapters: Mapping[str, Adapter],
    prompt: Callable[[Request], list[int]],
    start_s: float,
    objective: Objective,
) -> Submit:
    due_s = start_s + _due(request)
    return Submit(
        handle=request.index,
        prompt=prompt(request),
        sampling=Sampling(max_tokens=request.num_output_tokens, ignore_eos=True),
        adapter=adapters[request.adapter] if request.adapter else None,
        arrival_s=due_s,
        first_token_by_s=due_s + objective.first_token_s,
    )


def _due(request: Request) -> float:
    assert request.at_s is not None
    return request.at_s


def _record(request: Request) -> Record:
    return Record(
        request.index,
        request.adapter,
        request.num_prompt_tokens,
        request.num_output_tokens,
        _due(request),
    )


def counters(engine: Engine) -> dict[str, Any]:
    """What the engine counted since its start."""
    stats = engine.stats()
    return {"num_preemptions": stats.num_preemptions, "num_hopeless": stats.num_hopeless}
