"""One HTTP connection of uvicorn's, with a bound on how long it may stay without a request."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 10.0


class Connection(H11Protocol):
    """Closed when no request's head is complete `HEAD_TIMEOUT_S` after it was opened, or after its
    last answer.

    uvicorn's own timer starts behind an answer only and any byte stops it: who opens connections
    and asks nothing, or trickles a head, would hold places for ever.
    """

    _until_head: asyncio.TimerHandle | None = None

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

    def _await_head(self) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self._until_head = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._until_head is not None:
            self._until_head.cancel()
            self._until_head = None
