"""A Redis that answers and refuses: a replica, a full disk or memory, another password."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chorale.status import from_rpc_error
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admission_pb2, fleet_pb2
from controlplane.errors import StoreUnavailableError
from controlplane.store.client import Store
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import ControlPlane, failure, running
from tests.helpers.redis import send
from tests.helpers.tcp_to_unix import Forwarder
from tests.helpers.waiting import eventually

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_NOWHERE = "REPLICAOF 127.0.0.1 1"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """One whose settings a test may leave as they are."""
    with EmbeddedRedis(tmp_path / "data") as server:
        yield server


def told(server: EmbeddedRedis, *commands: str, before: str = "") -> None:
    for command in commands:
        assert send(server, command, before=before) == b"+OK\r\n", command


def _fill_disk(server: EmbeddedRedis, directory: Path) -> None:
    """Its last snapshot could not be written."""
    told(server, "CONFIG SET appendonly no", f"CONFIG SET dir {directory}", 'CONFIG SET save "1 1"')
    directory.rmdir()
    told(server, "SET a 1")
    assert send(server, "BGSAVE").startswith(b"+")
    while send(server, "SET a 2").startswith(b"+"):
        pass


Change = Callable[[EmbeddedRedis, Path], None]


def _commands(*commands: str) -> Change:
    return lambda server, _directory: told(server, *commands)


REFUSALS: dict[str, tuple[Change, Change]] = {
    "READONLY": (_commands(_NOWHERE), _commands("REPLICAOF NO ONE")),
    "MasterDown": (
        _commands("CONFIG SET replica-serve-stale-data no", _NOWHERE),
        _commands("REPLICAOF NO ONE"),
    ),
    "NOREPLICAS": (
        _commands("CONFIG SET min-replicas-to-write 1"),
        _commands("CONFIG SET min-replicas-to-write 0"),
    ),
    "OOM": (_commands("CONFIG SET maxmemory 1"), _commands("CONFIG SET maxmemory 0")),
    "MISCONF": (_fill_disk, _commands('CONFIG SET save ""')),
    "": (_commands("ACL SETUSER default -@write"), _commands("ACL SETUSER default +@write")),
}


async def _is(plane: ControlPlane, status: int) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(plane.channel)

    async def so() -> bool:
        return (await stub.Check(health_pb2.HealthCheckRequest())).status == status

    return await eventually(so)


@pytest.mark.parametrize("word", REFUSALS)
async def test_is_as_good_as_away_and_comes_back(
    redis: EmbeddedRedis, tmp_path: Path, word: str
) -> None:
    (tmp_path / "gone").mkdir()
    refuse, serve = REFUSALS[word]
    async with running(redis.url, adapter_roots=[tmp_path]) as plane:
        await plane.join(max_running=4)
        await plane.register("voice", make_adapter_dir(tmp_path / "1"))
        refuse(redis, tmp_path / "gone")
        assert await _is(plane, NOT_SERVING)
        alias = registry_pb.Alias(name="prod", adapter="voice", version=1)
        for call in (
            plane.registry.SetAlias(registry_pb.SetAliasRequest(alias=alias)),
            plane.register("other", tmp_path / "1"),
            plane.beat(),
            plane.join("dp-1"),
        ):
            error = await failure(call)
            assert (error.code.name, error.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
            assert error.retry_after_s and word in error.message
        serve(redis, tmp_path)
        assert await _is(plane, SERVING)
        await plane.beat(max_running=4)
        await plane.admission.Admit(admission_pb2.AdmitRequest(model="voice"))
        # Nothing was written by halves.
        listed = await plane.registry.ListAdapters(registry_pb.ListAdaptersRequest())
        assert [(each.name, list(each.aliases)) for each in listed.adapters] == [("voice", [])]
        planes = await plane.fleet.ListDataPlanes(fleet_pb2.ListDataPlanesRequest())
        assert [each.data_plane_id for each in planes.data_planes] == ["dp-0"]


async def test_leases_that_it_let_end_are_no_missing_data_planes(
    redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis.url, lease_s=1.0) as plane:
        await plane.join(max_running=4)
        told(redis, _NOWHERE)
        caplog.clear()

        async def is_refused() -> str:
            """While the lease lasts, requests are placed."""
            try:
                await plane.admission.Admit(admission_pb2.AdmitRequest())
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error).reason
            return ""

        with caplog.at_level(logging.WARNING, "controlplane.admission.reservations"):
            assert await eventually(is_refused) == "STORE_UNAVAILABLE"
            for _ in range(20):
                assert await is_refused() == "STORE_UNAVAILABLE"
                await plane.until_written()
        told(redis, "REPLICAOF NO ONE")
        assert len([x for x in caplog.records if "not counted" in x.message]) == 1
        await plane.join(max_running=4)
        await plane.admission.Admit(admission_pb2.AdmitRequest())


async def test_connections_to_a_demoted_primary_are_given_up(
    redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """As where a name or a balancer leads to the new one, and the old one closes nothing."""
    with EmbeddedRedis(tmp_path / "other") as promoted:
        forwarder = Forwarder(redis.url)
        async with forwarder.serving() as url, running(url) as plane:
            await plane.join(max_running=4)
            listing = fleet_pb2.ListDataPlanesRequest()  # many at once: many open connections
            await asyncio.gather(*(plane.fleet.ListDataPlanes(listing) for _ in range(20)))
            told(redis, _NOWHERE)
            assert await _is(plane, NOT_SERVING)
            forwarder.lead_to(promoted.url)
            assert await _is(plane, SERVING)

            async def joined() -> bool:
                try:
                    await plane.join(max_running=4)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    return False
                return True

            await eventually(joined)  # by connections of their own
            for _ in range(20):
                await asyncio.gather(*(plane.fleet.ListDataPlanes(listing) for _ in range(20)))
                await plane.admission.Admit(admission_pb2.AdmitRequest())


async def test_a_password_is_read_anew(redis: EmbeddedRedis, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    told(redis, "CONFIG SET requirepass first")
    store = Store(redis.url, password_file=file)
    try:
        await store.check_writable()
        told(redis, "CONFIG SET requirepass second", before="AUTH first")

        async def fails_by_password() -> bool:
            send(redis, "CLIENT KILL TYPE normal", before="AUTH second")  # as one that restarts
            with pytest.raises(StoreUnavailableError) as caught:
                await store.check_writable()
            return "invalid username-password" in caught.value.message

        await eventually(fails_by_password)
        file.write_text(" \n")
        with pytest.raises(StoreUnavailableError, match="password"):
            await store.check_writable()
        file.write_text("second\n")
        await store.check_writable()
    finally:
        await store.close()
        told(redis, 'CONFIG SET requirepass ""', before="AUTH second")
