"""All generations on one data plane over one call of its RelayService."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import grpc

from chorale.errors import ChoraleError
from chorale.relay import NUM_TAKEN_STEP
from chorale.status import from_serialized
from chorale.v1 import inference_pb2 as pb
from chorale.v1 import relay_pb2
from chorale.v1.relay_pb2_grpc import RelayServiceStub
from controlplane.gateway.upstream import deadline_exceeded

# A data plane of an older version may be replaced by one that knows the service.
_ASK_AGAIN_S = 60.0
_END: Any = cast("Any", grpc.aio).EOF  # its stubs lack it


class RelayUnknownError(Exception):
    """The data plane has no RelayService; `Generate` is for it. The ticket was not used."""


class Links:
    """The link over each channel, opened when it is first needed. Belongs to one event loop."""

    def __init__(self) -> None:
        self._links: dict[grpc.aio.Channel, Link] = {}
        self._ask_again_s: dict[grpc.aio.Channel, float] = {}

    def over(self, channel: grpc.aio.Channel) -> Link | None:
        """None while the data plane is known to have no RelayService."""
        link = self._links.get(channel)
        if link is None:
            if self._ask_again_s.get(channel, 0.0) > asyncio.get_running_loop().time():
                return None
            link = self._links[channel] = Link(channel, lambda: self._ended(channel))
        return link

    async def close(self) -> None:
        """Ends every link; what still runs on them fails as if it had been cancelled."""
        for link in tuple(self._links.values()):
            await link.close()

    def forget(self, channel: grpc.aio.Channel) -> None:
        """The channel is closed."""
        self._ask_again_s.pop(channel, None)

    def _ended(self, channel: grpc.aio.Channel) -> None:
        link = self._links.pop(channel)
        if link.is_unknown:
            self._ask_again_s[channel] = asyncio.get_running_loop().time() + _ASK_AGAIN_S


class Link:
    """One Relay call. ended: called once, when nothing can run over it any more."""

    def __init__(self, channel: grpc.aio.Channel, ended: Callable[[], None]) -> None:
        self.is_unknown = False
        self._call: Any = cast("Any", RelayServiceStub(channel)).Relay()
        self._ended = ended
        self._streams: dict[int, LinkStream] = {}
        self._handles = itertools.count(1)
        self._outbox: deque[relay_pb2.RelayRequest] = deque()
        self._news = asyncio.Event()
        self._writer = asyncio.create_task(self._write(), name="relay-write")
        self._reader = asyncio.create_task(self._read(), name="relay-read")

    def generate(self, request: pb.GenerateRequest, timeout_s: float | None) -> LinkStream:
        """Begins a generation; the request has its ticket."""
        stream = LinkStream(next(self._handles), self, timeout_s)
        self._streams[stream.handle] = stream
        start = relay_pb2.GenerationStart(request=request, timeout_s=timeout_s)
        self.post(relay_pb2.RelayRequest(handle=stream.handle, start=start))
        return stream

    def post(self, message: relay_pb2.RelayRequest) -> None:
        self._outbox.append(message)
        self._news.set()

    def end(self, handle: int) -> None:
        """Tells the data plane to forget a generation that has not ended."""
        if self._streams.pop(handle, None) is not None:
            self.post(relay_pb2.RelayRequest(handle=handle, end=relay_pb2.GenerationEnd()))

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            while self._outbox:
                try:
                    await self._call.write(self._outbox.popleft())
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the reader hears why
            self._news.clear()
            await self._news.wait()

    async def _read(self) -> None:
        error: BaseException | None = asyncio.CancelledError()
        try:
            while (message := await self._call.read()) is not _END:
                for event in message.events:
                    self._deliver(event)
            error = None  # the data plane is going: streams that still run just stop
        except grpc.aio.AioRpcError as failure:
            error = self._failure_of(failure)
        finally:
            self._writer.cancel()
            self._ended()
            streams, self._streams = self._streams, {}
            for stream in streams.values():
                stream.fail(error)

    def _failure_of(self, failure: grpc.aio.AioRpcError) -> Exception:
        if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
            self.is_unknown = True
            return RelayUnknownError()
        return failure

    def _deliver(self, event: relay_pb2.RelayEvent) -> None:
        stream = self._streams.get(event.handle)
        if stream is None:
            return  # ended here: the end and this event crossed
        if event.WhichOneof("kind") == "failure":
            del self._streams[event.handle]
            stream.fail(from_serialized(event.failure))
        else:
            if event.response.HasField("finished"):
                del self._streams[event.handle]
            stream.add(event.response)


class LinkStream:
    """One generation's events, for one reader; as the call that Generate returns.

    Iteration raises ChoraleError when the generation failed, AioRpcError when the link did,
    CancelledError after `cancel`, RelayUnknownError.
    """

    def __init__(self, handle: int, link: Link, timeout_s: float | None) -> None:
        self.handle = handle
        self._link = link
        self._responses: deque[pb.GenerateResponse] = deque()
        self._num_taken = 0
        self._ended = False
        self._error: BaseException | None = None
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(timeout_s, self._end, deadline_exceeded())

    def __aiter__(self) -> LinkStream:
        return self

    async def __anext__(self) -> pb.GenerateResponse:
        while not self._responses:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._num_taken += 1
        if self._num_taken == NUM_TAKEN_STEP:
            self._num_taken = 0
            if not self._ended:
                self._link.post(
                    relay_pb2.RelayRequest(handle=self.handle, num_taken=NUM_TAKEN_STEP)
                )
        return self._responses.popleft()

    def cancel(self) -> None:
        """Ends the generation, unless it has ended."""
        self._end(asyncio.CancelledError())

    def add(self, response: pb.GenerateResponse) -> None:
        """From the link."""
        self._responses.append(response)
        if response.HasField("finished"):
            self._finish(None)
        self._news.set()

    def fail(self, error: BaseException | None) -> None:
        """From the link: nothing more comes. The events before are read first."""
        self._finish(error)

    def _end(self, error: ChoraleError | asyncio.CancelledError) -> None:
        if not self._ended:
            self._responses.clear()
            self._finish(error)
            self._link.end(self.handle)

    def _finish(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended = True
            self._error = error
            if self._timer is not None:
                self._timer.cancel()
            self._news.set()
