"""A Redis that comes back empty, or as it was hours ago, while a fleet serves."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest

from chorale import tickets
from chorale.status import from_rpc_error
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admission_pb2, fleet_pb2
from controlplane.store.embedded import EmbeddedRedis
from dataplane.rpc.fleet import FleetMember
from tests.controlplane.tenants.quota import admit, limit, refusal, show
from tests.controlplane.tenants.test_max_running import end
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import (
    AUTHORIZATION,
    TOKEN,
    ControlPlane,
    base_model,
    failure,
    running,
)
from tests.helpers.redis import send
from tests.helpers.waiting import eventually, until

DIGEST = "d" * 64
_LEASE_S = 1.0


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "data") as server:
        yield server


class _DataPlane:
    """Membership as real data planes have it, with nothing behind it."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}
        self.heard: list[str] = []

    def report(self) -> tuple[fleet_pb2.Load, fleet_pb2.Residency]:
        return fleet_pb2.Load(max_running=4), fleet_pb2.Residency(pool_digests=[DIGEST])

    def on_keys(self, keys: list[fleet_pb2.TicketKey]) -> None:
        self.keys = {each.key_id: each.key for each in keys}

    def takes(self, place: admission_pb2.AdmitResponse) -> bool:
        tickets.verify(place.ticket, self.keys, data_plane_id="dp-0", now=time.time())
        return True


@asynccontextmanager
async def _member(plane: ControlPlane) -> AsyncIterator[_DataPlane]:
    data_plane = _DataPlane()
    member = FleetMember(
        plane.address,
        TOKEN,
        join=fleet_pb2.JoinRequest(
            data_plane_id="dp-0",
            incarnation=1,
            endpoint="127.0.0.1:7000",
            base_model=base_model(TINY_BASE),
        ),
        report=data_plane.report,
        on_keys=data_plane.on_keys,
        on_directive=lambda each: data_plane.heard.append(each.digest),
    )
    member.start()
    try:
        await member.wait_joined()
        yield data_plane
    finally:
        await member.stop()


async def _reported(plane: ControlPlane) -> bool:
    """Whether the data plane is back, with all that it holds."""
    try:
        listed = await plane.fleet.ListDataPlanes(fleet_pb2.ListDataPlanesRequest())
    except grpc.aio.AioRpcError as error:
        assert from_rpc_error(error).reason == "STORE_UNAVAILABLE"
        return False
    return [list(each.residency.pool_digests) for each in listed.data_planes] == [[DIGEST]]


async def _directed(plane: ControlPlane, name: str) -> None:
    request = fleet_pb2.DirectAdapterRequest(name=name, action=fleet_pb2.ADAPTER_ACTION_PREFETCH)
    await plane.fleet.DirectAdapter(request, metadata=AUTHORIZATION)


async def test_flushed_while_it_serves(redis: EmbeddedRedis, tmp_path: Path) -> None:
    async with (
        running(redis.url, adapter_roots=[tmp_path], lease_s=2.0) as plane,
        _member(plane) as data_plane,
    ):
        await plane.register("voice", make_adapter_dir(tmp_path / "1"))
        await limit(plane, "acme", max_running=2, requests_per_minute=3, tokens_per_minute=600)
        await _directed(plane, "voice")
        await eventually(lambda: len(data_plane.heard) == 1)
        await eventually(lambda: _reported(plane))
        before = [await admit(plane, model="voice") for _ in range(2)]
        await refusal(plane, model="voice")
        assert send(redis, "FLUSHALL") == b"+OK\r\n"

        error = await failure(admit(plane, model="voice"))
        assert (error.code.name, error.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        alias = registry_pb.GetAdapterRequest(name="voice@1")
        assert (await failure(plane.registry.GetAdapter(alias))).code.name == "NOT_FOUND"
        # What was let in before ends after, with limits that are there again.
        await limit(plane, "acme", max_running=2, requests_per_minute=3, tokens_per_minute=600)
        await end(plane, *before)
        await eventually(lambda: _reported(plane))
        assert (await show(plane, "acme")).num_running == 0
        assert data_plane.takes(await admit(plane))
        # Nothing that was let in before counts, and nothing is let in for it.
        assert data_plane.takes(await admit(plane))
        assert (await refusal(plane)).metadata["limit"] == "max_running"
        # Directives are numbered anew.
        await plane.register("voice", tmp_path / "1")
        await _directed(plane, "voice")
        await eventually(lambda: len(data_plane.heard) == 2)


async def test_restored_as_it_was(redis: EmbeddedRedis, tmp_path: Path) -> None:
    async with (
        running(redis.url, adapter_roots=[tmp_path], lease_s=1.0) as plane,
        _member(plane) as data_plane,
    ):
        await plane.register("voice", make_adapter_dir(tmp_path / "1"))
        await limit(plane, "acme", max_running=1)
        await eventually(lambda: _reported(plane))
        kept = await admit(plane, model="voice")
        await plane.until_written()
        with _as_it_is_now(redis, tmp_path):
            await end(plane, kept)
            await plane.register("voice", make_adapter_dir(tmp_path / "2", seed=2))
            alias = registry_pb.Alias(name="prod", adapter="voice", version=2)
            await plane.registry.SetAlias(registry_pb.SetAliasRequest(alias=alias))
            assert data_plane.takes(await admit(plane, model="prod"))
            # A fleet that has signed by other keys since.
            assert send(redis, "FLUSHALL") == b"+OK\r\n"
            await eventually(lambda: _reported(plane))
            assert data_plane.takes(await admit(plane))
            await asyncio.sleep(_LEASE_S)  # leases of the copy are over
        await eventually(lambda: _reported(plane))
        for model in ("prod", "voice@2"):
            assert (await failure(admit(plane, model=model))).reason == "MODEL_NOT_FOUND"

        async def admitted() -> bool:
            """It counted as running when the copy was made, and passes by itself."""
            try:
                place = await admit(plane, model="voice@1")
            except grpc.aio.AioRpcError as error:
                assert from_rpc_error(error).reason == "TENANT_QUOTA"
                await end(plane, kept)
                return False
            return data_plane.takes(place)

        await eventually(admitted)


@contextmanager
def _as_it_is_now(redis: EmbeddedRedis, tmp_path: Path) -> Iterator[None]:
    """A copy of its files is made now, and Redis killed and started with it in the end."""
    files = tmp_path / "data" / "redis"
    shutil.copytree(files, tmp_path / "copy", ignore=shutil.ignore_patterns("*lock*", "*.log"))
    yield
    assert redis.pid is not None
    os.kill(redis.pid, signal.SIGKILL)
    until(lambda: redis.poll() is not None)
    shutil.copytree(tmp_path / "copy", files, dirs_exist_ok=True)
    redis.start()
