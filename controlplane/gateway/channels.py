"""Channels to data planes, kept open between requests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from chorale.channel import CHANNEL_OPTIONS
from chorale.fleet_channel import open_fleet_channel
from chorale.fleet_tls import FleetTls


@dataclass
class _Entry:
    channel: grpc.aio.Channel
    num_users: int = 0


class ChannelCache:
    """At most `max_idle` channels stay open unused; the longest unused is closed first.

    A channel in use is never closed, whatever the number. closed: told of each that was closed.
    tls: of all of them; None: plaintext.
    """

    def __init__(
        self,
        max_idle: int = 64,
        closed: Callable[[grpc.aio.Channel], None] = lambda _: None,
        tls: FleetTls | None = None,
    ) -> None:
        self._max_idle = max_idle
        self._tls = tls
        self._closed = closed
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @asynccontextmanager
    async def lease(self, endpoint: str) -> AsyncGenerator[grpc.aio.Channel]:
        """The channel to `endpoint` (HOST:PORT), for as long as the context lasts."""
        entry = self._entries.get(endpoint)
        if entry is None:
            channel = open_fleet_channel(endpoint, CHANNEL_OPTIONS, self._tls)
            entry = self._entries[endpoint] = _Entry(channel)
        entry.num_users += 1
        try:
            yield entry.channel
        finally:
            entry.num_users -= 1
            if endpoint in self._entries:
                self._entries.move_to_end(endpoint)
            await self._close_surplus()

    async def close(self) -> None:
        """Closes every channel; calls on them are cancelled."""
        while self._entries:
            _, entry = self._entries.popitem(last=False)
            await self._close(entry.channel)

    async def _close_surplus(self) -> None:
        idle = [name for name, entry in self._entries.items() if entry.num_users == 0]
        surplus = [self._entries.pop(name) for name in idle[: max(0, len(idle) - self._max_idle)]]
        for entry in surplus:
            await self._close(entry.channel)

    async def _close(self, channel: grpc.aio.Channel) -> None:
        await channel.close()
        self._closed(channel)
