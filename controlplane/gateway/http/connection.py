"""One HTTP connection of uvicorn's: how long it may stay without a request, and what of HTTP/1.1
it takes."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from controlplane.gateway.http.failures import bad_request

HEAD_TIMEOUT_S = 10.0


class Connection(H11Protocol):
    """Closed when no request's head is complete `HEAD_TIMEOUT_S` after it was opened, or after its
    last answer.

    uvicorn's own timer starts behind an answer only and any byte stops it: who opens connections
    and asks nothing, or trickles a head, would hold places for ever.
    """

    _until_head: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Requests(h11.SERVER)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()  # may begin with the next request

    def send_400_response(self, msg: str) -> None:
        """To what is no HTTP request, in OpenAI's shape; then nothing more is read of it."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            message = f"{self.conn.problem or msg}; the connection is closed"
            body = msgspec.json.encode(bad_request(None, message, "invalid_http").body)
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            status = HTTPStatus.BAD_REQUEST
            head = h11.Response(status_code=status, headers=headers, reason=status.phrase)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self._until_head = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._until_head is not None:
            self._until_head.cancel()
            self._until_head = None


class _Requests(h11.Connection):
    """Refuses what another server on the way may cut differently than h11 does: what follows such
    a request on the connection could be anybody's (RFC 9112, sections 6.1 and 11.2).

    problem: of the request that was refused, for people.
    """

    problem = ""

    def next_event(self) -> Any:
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.problem = f"this is no HTTP/1.1 request: {str(error)[:200]}"
            raise
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                self.problem = (
                    "the request has both Content-Length and Transfer-Encoding; send one of them"
                )
                raise h11.RemoteProtocolError(self.problem)
        return event
