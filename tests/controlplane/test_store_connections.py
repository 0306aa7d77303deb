"""Connections to Redis over TCP, as they are where Redis is another process's or machine's."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.errors import StoreUnavailableError
from controlplane.store.client import Store
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.redis import send
from tests.helpers.tcp_to_unix import Forwarder

_MANY = 40  # more than the store has connections


async def test_a_connection_that_redis_has_closed_fails_no_call(redis_url: str) -> None:
    forwarder = Forwarder(redis_url)
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
