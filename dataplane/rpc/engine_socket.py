"""The frontend's socket to the engine, without a task or a future for each message."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

import zmq

from dataplane import channel

_MAX_AT_ONCE = 64  # messages that are taken before others get the event loop


class EngineSocket:
    """Binds `address`; messages go in and out as the event loop that makes it has time.

    take: called with each message that comes; must not raise. Sending never blocks: what the engine
    does not take yet waits in `num_waiting`.
    """

    def __init__(self, address: str, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(channel.HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self._outbox: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        self._descriptor: int = self._socket.getsockopt(zmq.FD)  # pyright: ignore[reportAttributeAccessIssue]
        self._loop.add_reader(self._descriptor, self._work)
        self._again: asyncio.Handle | None = None

    @property
    def num_waiting(self) -> int:
        """Messages that were not given to the system yet."""
        return len(self._outbox)

    def send(self, message: channel.ToEngine) -> None:
        self._outbox.append(channel.encode(message))
        # Sending may take in the news that messages have come, of which the descriptor then says
        # nothing more: `_work` looks for both.
        self._soon()

    def close(self) -> None:
        """What was not sent is dropped. Idempotent."""
        if self._socket.closed:
            return
        self._loop.remove_reader(self._descriptor)
        if self._again is not None:
            self._again.cancel()
        self._socket.close()
        self._context.term()

    def _work(self) -> None:
        """Sends and receives until neither goes on: the descriptor tells of changes only."""
        with contextlib.suppress(zmq.Again):
            while self._outbox:
                self._socket.send(self._outbox[0], zmq.NOBLOCK)
                self._outbox.popleft()
        for _ in range(_MAX_AT_ONCE):
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._take(data)
            if self._socket.closed:  # by what the message led to
                return
        # Receiving may have taken in the news that there is room to send, and the other way round.
        # Once this has looked at all news, the descriptor tells of the next.
        wanted = zmq.POLLIN | (zmq.POLLOUT if self._outbox else 0)
        if self._socket.getsockopt(zmq.EVENTS) & wanted:  # pyright: ignore[reportOperatorIssue]
            self._soon()

    def _soon(self) -> None:
        if self._again is None and not self._socket.closed:
            self._again = self._loop.call_soon(self._work_again)

    def _work_again(self) -> None:
        self._again = None
        self._work()
