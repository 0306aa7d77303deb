"""RelayService of a data plane: many generations over one call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Any, cast

import grpc

from chorale.errors import InternalError, InvalidArgumentError, UnavailableError
from chorale.relay import MAX_EVENTS_UNDER_WAY
from chorale.server import translate
from chorale.status import to_status
from chorale.v1 import inference_pb2, relay_pb2, relay_pb2_grpc

log = logging.getLogger(__name__)

SERVICE_NAME = "chorale.v1.RelayService"

Events = Callable[
    [inference_pb2.GenerateRequest, float | None, contextlib.ExitStack],
    AsyncGenerator[inference_pb2.GenerateResponse],
]
"""(request, seconds it may take, what it holds) -> its events, as InferenceService.events."""

_MAX_RESPONSE_BYTES = 1 << 20  # but one event always fits


class RelayService(relay_pb2_grpc.RelayServiceServicer):
    """Runs what `events` gives for each request.

    max_unread_events: of one call; beyond them no generation is begun.
    """

    def __init__(self, events: Events, *, max_unread_events: int = 4096) -> None:
        self._events = events
        self._max_unread_events = max_unread_events
        self._sessions: set[_Session] = set()

    async def Relay(
        self,
        request_iterator: AsyncIterator[relay_pb2.RelayRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[relay_pb2.RelayResponse]:
        session = _Session(self._events, self._max_unread_events)
        self._sessions.add(session)

        def end(_: object) -> None:
            session.end_all()

        # A cancelled call that waits in a write hears of it late; this does not.
        cast("Any", context).add_done_callback(end)
        session.read(request_iterator)
        try:
            async for response in session.responses():
                yield response
        finally:
            self._sessions.discard(session)
            await session.close()

    @property
    def num_unread(self) -> int:
        """Events of all calls that have not been sent."""
        return sum(session.num_unread for session in self._sessions)

    def finish(self) -> None:
        """From now on calls end as soon as nothing runs on them."""
        for session in self._sessions:
            session.finish()


class _Session:
    """One call. Its generations are tasks, which `close` ends."""

    def __init__(self, events: Events, max_unread_events: int) -> None:
        self._events = events
        self._max_unread_events = max_unread_events
        self._running: dict[int, _Running] = {}
        self._unread: list[relay_pb2.RelayEvent] = []
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._finishing = False

    @property
    def num_unread(self) -> int:
        return len(self._unread)

    def read(self, requests: AsyncIterator[relay_pb2.RelayRequest]) -> None:
        """Begins to do what the requests say."""
        self._reader = asyncio.create_task(self._read(requests), name="relay-read")
        self._reader.add_done_callback(lambda _: self.finish())

    async def responses(self) -> AsyncGenerator[relay_pb2.RelayResponse]:
        """Raises: InvalidArgumentError for a request that makes no sense."""
        while True:
            if self._unread:
                yield relay_pb2.RelayResponse(events=self._take())
            elif self._finishing and not self._running:
                break
            else:
                self._news.clear()
                await self._news.wait()
        if self._reader is not None and self._reader.done() and not self._reader.cancelled():
            self._reader.result()

    def finish(self) -> None:
        self._finishing = True
        self._news.set()

    def end_all(self) -> None:
        """Frees what all generations hold. Idempotent."""
        for running in tuple(self._running.values()):
            running.end()

    async def close(self) -> None:
        self.end_all()
        tasks = [running.task for running in self._running.values() if running.task is not None]
        if self._reader is not None:
            self._reader.cancel()
            tasks.append(self._reader)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[relay_pb2.RelayRequest]) -> None:
        try:
            async for message in requests:
                action = message.WhichOneof("action")
                if action == "start":
                    while len(self._unread) >= self._max_unread_events:
                        self._room.clear()
                        await self._room.wait()
                    self._start(message.handle, message.start)
                elif action == "num_taken":
                    if running := self._running.get(message.handle):
                        running.taken(message.num_taken)
                elif action == "end":
                    if running := self._running.pop(message.handle, None):
                        running.end()
                else:
                    raise InvalidArgumentError(
                        "RELAY_ACTION_MISSING",
                        f"handle {message.handle}: set one of start, end and num_taken",
                        metadata={"field": "action"},
                    )
        except InvalidArgumentError:
            self.end_all()
            raise

    def _start(self, handle: int, start: relay_pb2.GenerationStart) -> None:
        if handle == 0 or handle in self._running:
            raise InvalidArgumentError(
                "RELAY_HANDLE_INVALID",
                f"handle is {handle}; it must be above 0 and of no generation that runs",
                metadata={"field": "handle", "value": str(handle)},
            )
        running = self._running[handle] = _Running()
        running.task = asyncio.create_task(
            self._generate(handle, start, running), name=f"relayed-{handle}"
        )
        running.task.add_done_callback(partial(self._forget, handle, running))

    def _forget(self, handle: int, running: _Running, _: asyncio.Task[None]) -> None:
        if self._running.get(handle) is running:
            del self._running[handle]
        self._news.set()  # it may have been the last one

    async def _generate(
        self, handle: int, start: relay_pb2.GenerationStart, running: _Running
    ) -> None:
        timeout_s = start.timeout_s if start.HasField("timeout_s") else None
        responses = self._events(start.request, timeout_s, running.held)
        try:
            async with contextlib.aclosing(responses):
                async for response in responses:
                    self._say(relay_pb2.RelayEvent(handle=handle, response=response))
                    if response.HasField("finished"):
                        return
                    await running.sent()
            raise UnavailableError("STREAM_BROKEN_OFF", "the generation stopped without an end")
        except Exception as error:
            known = translate(error, {})
            if isinstance(known, InternalError):
                log.error("a relayed generation failed", exc_info=error)
            failure = to_status(known).SerializeToString()
            self._say(relay_pb2.RelayEvent(handle=handle, failure=failure))

    def _say(self, event: relay_pb2.RelayEvent) -> None:
        self._unread.append(event)
        self._news.set()

    def _take(self) -> list[relay_pb2.RelayEvent]:
        """What goes into one message."""
        size, count = 0, 0
        for event in self._unread:
            size += event.ByteSize()
            if count and size > _MAX_RESPONSE_BYTES:
                break
            count += 1
        events, self._unread = self._unread[:count], self._unread[count:]
        self._room.set()
        return events


class _Running:
    """One generation and its share of what may be under way."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.held = contextlib.ExitStack()
        self._num_under_way = 0
        self._taken = asyncio.Event()

    def taken(self, number: int) -> None:
        self._num_under_way = max(0, self._num_under_way - number)
        self._taken.set()

    async def sent(self) -> None:
        """Counts one event; returns when the next may be sent."""
        self._num_under_way += 1
        while self._num_under_way >= MAX_EVENTS_UNDER_WAY:
            self._taken.clear()
            await self._taken.wait()

    def end(self) -> None:
        self.held.close()
        if self.task is not None:
            self.task.cancel()
