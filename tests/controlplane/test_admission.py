"""Admit over gRPC: what names mean, where requests go, what the ticket says."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chorale import tickets
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admission_pb2 as pb
from chorale.v1 import fleet_pb2
from controlplane.admission.reservations import Reservations
from controlplane.store import keys
from controlplane.store.client import Store
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import ControlPlane, failure, running
from tests.helpers.redis import send


async def admit(plane: ControlPlane, model: str = "", **fields: Any) -> pb.AdmitResponse:
    return await plane.admission.Admit(pb.AdmitRequest(model=model, **fields))


async def test_a_ticket_says_what_the_name_means(plane: ControlPlane, tmp_path: Path) -> None:
    joined = await plane.join(max_running=4)
    first = await plane.register("voice", make_adapter_dir(tmp_path / "1", seed=1))
    await plane.register("voice", make_adapter_dir(tmp_path / "2", seed=2))
    alias = registry_pb.Alias(name="prod", adapter="voice", version=1)
    await plane.registry.SetAlias(registry_pb.SetAliasRequest(alias=alias))
    keys = {key.key_id: key.key for key in joined.ticket_keys}
    ids = set()
    for model, name, version in (
        ("voice", "voice", 2),
        ("voice@1", "voice", 1),
        ("prod", "voice", 1),
        ("tiny/llama", "tiny/llama", 0),
        ("", "tiny/llama", 0),
    ):
        response = await admit(plane, model, tenant="acme")
        assert (response.model, response.adapter_version) == (name, version)
        assert (response.endpoint, response.data_plane_id) == ("127.0.0.1:7000", "dp-0")
        claims = tickets.verify(response.ticket, keys, data_plane_id="dp-0", now=time.time())
        assert claims.base_model == "tiny/llama"
        assert claims.tenant == "acme"
        assert claims.adapter_name == (name if version else "")
        assert claims.adapter_version == version
        assert claims.adapter_digest == response.adapter_digest
        assert bool(claims.adapter_digest) == bool(claims.adapter_source) == bool(version)
        assert claims.expires_at == response.expires_at
        if version == 1:
            assert response.adapter_digest == first.version.digest
            assert claims.adapter_source == first.version.source
        ids.add(claims.ticket_id)
    assert len(ids) == 5
    claims = tickets.verify(
        (await admit(plane)).ticket, keys, data_plane_id="dp-0", now=time.time()
    )
    assert claims.tenant == "default"


@pytest.mark.parametrize("options", [{}, {"max_priority": 4}])
async def test_a_ticket_bounds_the_priority(redis_url: str, options: dict[str, int]) -> None:
    async with running(redis_url, **options) as plane:
        keys = {key.key_id: key.key for key in (await plane.join()).ticket_keys}
        ticket = (await admit(plane)).ticket
        claims = tickets.verify(ticket, keys, data_plane_id="dp-0", now=time.time())
        assert claims.max_priority == options.get("max_priority", 0)


@pytest.mark.parametrize("apart", [False, True])
async def test_a_ticket_says_whose_cached_prompts_are(redis_url: str, apart: bool) -> None:
    async with running(redis_url, prefix_cache_per_tenant=apart) as plane:
        keys = {key.key_id: key.key for key in (await plane.join()).ticket_keys}
        ticket = (await admit(plane)).ticket
        claims = tickets.verify(ticket, keys, data_plane_id="dp-0", now=time.time())
        assert claims.tenant_prefixes is apart


async def test_requests_go_where_the_adapter_is(plane: ControlPlane, tmp_path: Path) -> None:
    for i in range(4):
        await plane.join(f"dp-{i}", max_running=64)
    voice = await plane.register("voice", make_adapter_dir(tmp_path / "1"))
    digest = voice.version.digest
    for where in ("dp-0", "dp-3"):
        await plane.beat(
            where, max_running=64, residency=fleet_pb2.Residency(pool_digests=[digest])
        )
        chosen = {(await admit(plane, "voice")).data_plane_id for _ in range(5)}
        assert chosen == {where}
        await plane.beat(where, max_running=64)


async def test_a_burst_between_heartbeats_spreads(redis_url: str) -> None:
    """Two replicas, one hundred requests at once, no report in between."""
    async with running(redis_url) as one, running(redis_url) as two:
        for i in range(4):
            await one.join(f"dp-{i}", max_running=64)
        chosen = await asyncio.gather(*(admit((one, two)[i % 2]) for i in range(100)))
        counts = Counter(response.data_plane_id for response in chosen)
        assert len(counts) == 4
        assert max(counts.values()) <= 35
        # What one replica placed, the other sees.
        await one.until_written()
        await two.until_written()
        await one.beat("dp-2", max_running=64)
        assert (await admit(two)).data_plane_id == "dp-2"


async def test_excluded_data_planes_are_not_picked(plane: ControlPlane) -> None:
    for i in range(3):
        await plane.join(f"dp-{i}", max_running=4)
    excluded = ["dp-0", "dp-2", "stranger"]
    for _ in range(10):
        response = await admit(plane, excluded_data_plane_ids=excluded)
        assert response.data_plane_id == "dp-1"
    error = await failure(admit(plane, excluded_data_plane_ids=["dp-0", "dp-1", "dp-2"]))
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "ALL_EXCLUDED")
    assert error.retry_after_s


async def test_only_data_planes_of_the_base_model(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join("dp-0", max_running=1)
    await plane.join("dp-1", base=replace(TINY_BASE, name="other"), max_running=64)
    await plane.register("voice", make_adapter_dir(tmp_path / "1"))
    assert {(await admit(plane, "voice")).data_plane_id for _ in range(5)} == {"dp-0"}
    assert (await admit(plane, "other")).data_plane_id == "dp-1"
    error = await failure(admit(plane))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "MODEL_REQUIRED")
    assert "other" in error.message


async def test_full_fleet(redis_url: str) -> None:
    async with running(redis_url, max_queue_factor=2.0) as plane:
        for i in range(2):
            await plane.join(f"dp-{i}")
            await plane.beat(f"dp-{i}", num_running=3, num_waiting=6, max_running=3)
        error = await failure(admit(plane))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "FLEET_FULL")
        assert "try again later" in error.message and "retry_after" not in error.message
        assert error.retry_after_s
        await plane.beat("dp-1", num_running=3, num_waiting=5, max_running=3)
        assert (await admit(plane)).data_plane_id == "dp-1"


async def test_nobody_there(
    plane: ControlPlane, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    error = await failure(admit(plane))
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "NO_DATA_PLANE")
    await plane.join()
    await plane.register("voice", make_adapter_dir(tmp_path / "1"))
    await plane.join(incarnation=2)
    await admit(plane, "voice")
    await plane.until_written()
    assert send(redis_server, f"DEL {keys.DATA_PLANE}dp-0") == b":1\r\n", "its lease is over"
    for model in ("", "voice", "tiny/llama"):
        error = await failure(admit(plane, model))
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "NO_DATA_PLANE")
        assert error.retry_after_s


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"model": "nobody"}, "NOT_FOUND", "MODEL_NOT_FOUND"),
        ({"model": "tiny/llama@1"}, "NOT_FOUND", "MODEL_NOT_FOUND"),
        ({"model": "a b"}, "INVALID_ARGUMENT", "NAME_INVALID"),
        ({"model": "a" * 100_000}, "INVALID_ARGUMENT", "NAME_INVALID"),
        ({"tenant": "a b"}, "INVALID_ARGUMENT", "TENANT_INVALID"),
        ({"tenant": "a" * 129}, "INVALID_ARGUMENT", "TENANT_INVALID"),
        (
            {"excluded_data_plane_ids": [str(i) for i in range(65)]},
            "INVALID_ARGUMENT",
            "TOO_MANY_EXCLUDED",
        ),
    ],
)
async def test_refusals(
    plane: ControlPlane, fields: dict[str, Any], code: str, reason: str
) -> None:
    await plane.join()
    error = await failure(admit(plane, **fields))
    assert (error.code.name, error.reason) == (code, reason)
    assert len(error.message) < 600


async def test_tickets_after_redis_came_back_empty(
    redis_server: EmbeddedRedis, redis_url: str
) -> None:
    """Both replicas sign with the one new key, not with what they remember."""
    async with running(redis_url) as one, running(redis_url) as two:
        before = await one.join()
        await admit(one)
        await admit(two)
        send(redis_server, "FLUSHALL")
        after = await two.join()
        assert after.ticket_keys != before.ticket_keys
        keys = {key.key_id: key.key for key in after.ticket_keys}
        for replica in (one, two):
            ticket = (await admit(replica)).ticket
            assert tickets.verify(ticket, keys, data_plane_id="dp-0", now=time.time())


async def test_admission_waits_for_one_round_trip(
    redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path
) -> None:
    """Commands per request: the admission, and the counting of placements behind its back."""
    async with running(redis_url, adapter_roots=[tmp_path]) as plane:
        await plane.join(max_running=64)
        await plane.register("voice", make_adapter_dir(tmp_path / "1"))
        await admit(plane, "voice")
        await plane.until_written()
        before, began_s = _num_scripts(redis_server), time.monotonic()
        for _ in range(20):
            await admit(plane, "voice")
        await plane.until_written()
        # Ticks of the predictor, and demand ten times a second, come between.
        between = 3 + 12 * (time.monotonic() - began_s)
        assert _num_scripts(redis_server) - before <= 40 + between


def _num_scripts(server: EmbeddedRedis) -> int:
    stats = send(server, "INFO commandstats").decode()
    line = next(line for line in stats.splitlines() if line.startswith("cmdstat_evalsha:"))
    return int(line.partition("calls=")[2].partition(",")[0])


async def test_counting_a_placement_revives_nobody(
    redis_server: EmbeddedRedis, redis_url: str
) -> None:
    """The data plane may have left between its choice and the count."""
    store = Store(redis_url, timeout_s=60.0)
    reservations = Reservations(store)
    reservations.start()
    try:
        reservations.add("gone", 1)
        assert reservations.unwritten("gone") == 1
        while reservations.unwritten("gone"):
            await asyncio.sleep(0.01)
    finally:
        await reservations.stop()
        await store.close()
    assert send(redis_server, "DBSIZE") == b":0\r\n"
