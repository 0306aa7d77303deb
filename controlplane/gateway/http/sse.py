"""Server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chorale.errors import ChoraleError
from chorale.frames import forget_frames
from controlplane.gateway.http.disconnect import while_connected
from controlplane.gateway.http.failures import ApiError, api_error

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


def _openai(error: ApiError) -> dict[str, Any]:
    return error.body


class EventStream(Response):
    """Streams objects as events; `done` (nothing if empty) is the last.

    named: each event has its object's `type` as its name. A failure in mid-stream is one event,
    `failure` of it, and ends the stream without `done`. When the client disconnects the objects'
    generator is closed at once. `close` is called at the end, however it comes.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        objects: AsyncGenerator[dict[str, Any]],
        close: Callable[[], Awaitable[None]],
        headers: dict[str, str],
        *,
        done: bytes = DONE,
        failure: Callable[[ApiError], dict[str, Any]] = _openai,
        named: bool = False,
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        )
        del self.headers["content-length"]
        self._objects = objects
        self._close = close
        self._done = done
        self._failure = failure
        self._event_of = named_event_of if named else event_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._stream(send))
        except ApiError as error:
            if error.status != 499:
                raise
        finally:
            await self._close()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events()) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[bytes]:
        try:
            async with aclosing(self._objects) as objects:
                async for value in objects:
                    yield self._event_of(value)
        except ChoraleError as error:
            forget_frames(error)
            yield self._event_of(self._failure(api_error(error)))
        except Exception:
            log.exception("a stream failed")
            yield self._event_of(self._failure(internal_fault()))
        else:
            if self._done:
                yield self._done


def event_of(value: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event_of(value: dict[str, Any]) -> bytes:
    """One event with its object's `type` as its name."""
    return b"event: " + value["type"].encode() + b"\n" + event_of(value)


def internal_fault() -> ApiError:
    """What clients see of a fault of ours."""
    return ApiError(500, "internal fault; the server's log has the details", code="internal")
