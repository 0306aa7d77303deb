"""TCP before a Redis on a Unix socket, as where Redis is another machine's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Forwarder:
    """TCP on 127.0.0.1 before the Unix socket that `url` names."""

    def __init__(self, url: str) -> None:
        self._path = ""
        self.lead_to(url)
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_connections = 0

    def lead_to(self, url: str) -> None:
        """From the next connection on."""
        self._path = url.removeprefix("unix://").partition("?")[0]

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        finally:
            await self.close_connections()
            server.close()
            await server.wait_closed()

    async def close_connections(self) -> None:
        """As a Redis that is started again, or that closes idle clients (`timeout`)."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))
        await asyncio.sleep(0.05)  # until clients hear of it

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        from_redis, to_redis = await asyncio.open_unix_connection(self._path)
        self._writers += [writer, to_redis]
        for source, sink in ((reader, to_redis), (from_redis, writer)):
            task = asyncio.create_task(_copied(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _copied(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
