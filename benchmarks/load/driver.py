"""Sends one phase and records every request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, cast

from benchmarks.errors import RequestFailed
from benchmarks.load.records import Record
from benchmarks.load.target import Target
from benchmarks.load.workload import Phase, Request

Observe = Callable[[Record], None]
"""Called when a request was sent, when tokens came, and when it ended."""


class Driver:
    """One phase against one target. Latencies are taken as chunks arrive in this process.

    prompts: of the phase's requests, in order; made before, so that making them delays none.
    timeout_s: of each request. max_in_flight: an open loop that has so many open streams counts
    further requests as failed (CLIENT_SATURATED) rather than delay them silently.
    """

    def __init__(
        self,
        target: Target,
        phase: Phase,
        prompts: Sequence[Sequence[int]],
        *,
        timeout_s: float = 300.0,
        max_in_flight: int = 4096,
        observe: Observe = lambda record: None,
    ) -> None:
        assert len(prompts) == len(phase.requests)
        self._target = target
        self._phase = phase
        self._prompts = prompts
        self._timeout_s = timeout_s
        self._max_in_flight = max_in_flight
        self._observe = observe
        self._in_flight = 0
        self._started_s = 0.0
        self.records: list[Record] = []

    async def run(self) -> list[Record]:
        """The records of all requests, in the order of their index."""
        self._started_s = time.perf_counter()
        if self._phase.concurrency:
            await self._closed_loop()
        else:
            await self._open_loop()
        return sorted(self.records, key=lambda record: record.index)

    async def _closed_loop(self) -> None:
        todo = iter(zip(self._phase.requests, self._prompts, strict=True))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._phase.concurrency, len(self._prompts))):
                group.create_task(self._worker(todo))

    async def _worker(self, todo: Iterator[tuple[Request, Sequence[int]]]) -> None:
        for request, prompt in todo:
            await self._send(self._record(request, self._now_s()), prompt)

    async def _open_loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            for request, prompt in zip(self._phase.requests, self._prompts, strict=True):
                assert request.at_s is not None
                wait_s = request.at_s - self._now_s()
                # Those that are due already go out, but others may run between.
                await asyncio.sleep(max(0.0, wait_s))
                record = self._record(request, request.at_s)
                if self._in_flight >= self._max_in_flight:
                    record.sent_s = self._now_s()
                    _fail(record, "CLIENT_SATURATED", f"{self._max_in_flight} streams are open")
                    self._observe(record)
                    continue
                group.create_task(self._send(record, prompt))

    async def _send(self, record: Record, prompt: Sequence[int]) -> None:
        self._in_flight += 1
        record.sent_s = self._now_s()
        self._observe(record)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._receive(record, prompt)
        except RequestFailed as failure:
            _fail(record, failure.reason, failure.message)
        except TimeoutError:
            _fail(record, "CLIENT_TIMEOUT", f"not complete after {self._timeout_s:g} s")
        finally:
            self._in_flight -= 1
            self._observe(record)

    async def _receive(self, record: Record, prompt: Sequence[int]) -> None:
        stream = self._target.stream(record.adapter, prompt, record.num_wanted_tokens)
        async with aclosing(cast("Any", stream)) as chunks:
            async for chunk in chunks:
                now_s = self._now_s()
                if chunk.num_tokens:
                    record.token_s.append(now_s)
                    record.token_counts.append(chunk.num_tokens)
                if chunk.done:
                    record.done_s = now_s
                    record.queue_s = chunk.queue_s
                    record.adapter_load_s = chunk.adapter_load_s
                elif chunk.num_tokens:
                    self._observe(record)
        if record.done_s is None:
            raise RequestFailed("STREAM_INCOMPLETE", "the stream ended early")

    def _record(self, request: Request, due_s: float) -> Record:
        record = Record(
            index=request.index,
            adapter=request.adapter,
            num_prompt_tokens=request.num_prompt_tokens,
            num_wanted_tokens=request.num_output_tokens,
            due_s=due_s,
        )
        self.records.append(record)
        return record

    def _now_s(self) -> float:
        return time.perf_counter() - self._started_s


def _fail(record: Record, reason: str, message: str) -> None:
    record.error, record.error_message = reason, message
