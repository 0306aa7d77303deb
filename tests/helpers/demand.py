"""Adapters and data planes as they stand in Redis, for tests of demand and predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from redis.asyncio import Redis

from controlplane.fleet.counters import Counters, TierCounters
from controlplane.fleet.model import Load
from controlplane.registry.model import VersionRecord, encode
from controlplane.store import keys

BASE = "tiny/llama"
SIZE = 1000


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def identity_of(name: str) -> str:
    return f"{digest_of(name)}:{BASE}"


async def put_adapter(redis: Redis, name: str, *, private: bool = False) -> str:
    """Registers version 1 of it; its identity."""
    record = VersionRecord(digest_of(name), BASE, 4, ("q_proj",), SIZE, 0)
    fields = {
        "current": "1",
        "version:1": encode(record),
        "source:1": f"file:///{name}",
        "private:1": str(int(private)),
        "identity:1": identity_of(name),
    }
    await redis.hset(keys.ADAPTER + name, mapping=fields)  # type: ignore[misc]
    return identity_of(name)


async def put_plane(
    redis: Redis, data_plane_id: str, *, host: Iterable[str] = (), max_bytes: int = 100 * SIZE
) -> None:
    """One that has joined long ago, and whose lease is long. host: identities in host memory."""
    tiers = [TierCounters(tier, 0, 0, max_bytes, 0, 0, 0) for tier in ("pool", "host")]
    fields = {
        "incarnation": "1",
        "base_model": BASE,
        "load": Load(max_running=8).pack(),
        "num_placed": "0",
        "counters": Counters(tiers=tiers).pack(),
        "last_heartbeat_ms": "0",
    }
    await redis.hset(keys.DATA_PLANE + data_plane_id, mapping=fields)  # type: ignore[misc]
    await redis.pexpire(keys.DATA_PLANE + data_plane_id, 60_000)  # directives live as long
    await redis.sadd(keys.DATA_PLANES, data_plane_id)  # type: ignore[misc]
    held = [identity.partition(":")[0] for identity in host]
    if held:
        await redis.sadd(keys.RESIDENCY_HOST + data_plane_id, *held)  # type: ignore[misc]
