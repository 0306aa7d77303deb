"""Connections to Redis over TCP, as they are where Redis is another process's or machine's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from controlplane.errors import StoreUnavailableError
from controlplane.store.client import Store
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.redis import send

_MANY = 40  # more than the store has connections


class _Forwarder:
    """TCP on 127.0.0.1 before a Unix socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_connections = 0

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


async def test_a_connection_that_redis_has_closed_fails_no_call(redis_url: str) -> None:
    forwarder = _Forwarder(redis_url.removeprefix("unix://").partition("?")[0])
    async with forwarder.serving() as url:
        store = Store(url, timeout_s=60.0)
        try:
            await asyncio.gather(*(store.run("base_models") for _ in range(_MANY)))
            before = forwarder.num_connections
            assert before > 1
            await forwarder.close_connections()
            await asyncio.gather(*(store.run("base_models") for _ in range(_MANY)))
            assert forwarder.num_connections > before
        finally:
            await store.close()


@pytest.mark.parametrize(
    "setting",
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        ("ACL SETUSER default -evalsha", "ACL SETUSER default +evalsha"),
        ("ACL SETUSER default -@hash", "ACL SETUSER default +@hash"),  # what a script calls
    ],
)
async def test_a_redis_that_refuses_is_no_fault_of_a_script(
    redis_server: EmbeddedRedis, redis_url: str, setting: tuple[str, str]
) -> None:
    refuse, serve = setting
    store = Store(redis_url)
    try:
        assert send(redis_server, refuse) == b"+OK\r\n"
        with pytest.raises(StoreUnavailableError):
            await store.run("set_tenant", "acme", "{}", 9)
        assert send(redis_server, serve) == b"+OK\r\n"
        await store.run("set_tenant", "acme", "{}", 9)
    finally:
        send(redis_server, serve)
        await store.close()
