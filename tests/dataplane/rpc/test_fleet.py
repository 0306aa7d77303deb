from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from msgspec import structs

from chorale.errors import FailedPreconditionError, UnauthenticatedError, UnavailableError
from chorale.fleet_tls import FleetTls
from chorale.v1 import fleet_pb2
from dataplane.channel import Stats
from dataplane.rpc import fleet
from dataplane.rpc.announce import base_model_of, load_of, residency_of
from dataplane.rpc.fleet import FleetMember
from tests.helpers.fake_control_plane import KEY_ID, TOKEN, FakeControlPlane, eventually, serving
from tests.helpers.fake_engine import ready_message
from tests.helpers.fleet_certificates import write_files

JOIN = fleet_pb2.JoinRequest(
    data_plane_id="dp-1",
    incarnation=7,
    endpoint="127.0.0.1:1",
    base_model=base_model_of(ready_message()),
)
STATS = Stats(
    num_running=1,
    num_waiting=2,
    num_pages=100,
    num_available_pages=60,
    num_used_pages=40,
    num_generated_tokens=9,
    pool_digests=["b", "a"],
    host_digests=["a", "c"],
    disk_digests=["a", "b", "c", "d"],
)


@contextlib.asynccontextmanager
async def member(
    address: str, *, token: str = TOKEN, tls: FleetTls | None = None
) -> AsyncIterator[FleetMember]:
    joined = FleetMember(
        address,
        token,
        join=JOIN,
        report=lambda: (load_of(ready_message(), STATS), residency_of(STATS)),
        on_keys=keys.append,
        on_directive=directives.append,
        tls=tls,
    )
    joined.start()
    try:
        yield joined
    finally:
        await joined.stop()


keys: list[list[fleet_pb2.TicketKey]] = []
directives: list[fleet_pb2.Directive] = []


@pytest.fixture(autouse=True)
def no_keys() -> None:
    keys.clear()
    directives.clear()


async def test_joins_reports_and_leaves() -> None:
    plane = FakeControlPlane()
    async with serving(plane) as server:
        async with member(server.address) as joined:
            await joined.wait_joined()
            await eventually(lambda: len(plane.heartbeats) >= 3)
        assert plane.joins == [JOIN]
        assert [(leave.data_plane_id, leave.incarnation) for leave in plane.leaves] == [("dp-1", 7)]
    beat = plane.heartbeats[0]
    assert beat.incarnation == 7
    assert (beat.load.num_waiting, beat.load.max_running, beat.load.num_available_pages) == (
        2,
        4,
        60,
    )
    assert list(beat.residency.pool_digests) == ["a", "b"]
    assert list(beat.residency.host_digests) == ["c"]
    assert list(beat.residency.disk_digests) == ["d"]
    assert all(given[0].key_id == KEY_ID for given in keys) and len(keys) >= 3


async def test_before_any_stats_the_engine_counts_as_idle() -> None:
    load = load_of(ready_message(), None)
    assert (load.num_pages, load.num_available_pages, load.num_running) == (100, 100, 0)
    assert residency_of(None) == fleet_pb2.Residency()


def test_of_very_many_adapters_some_on_disk_are_left_out() -> None:
    many = structs.replace(STATS, disk_digests=[f"{each:06}" for each in range(50_000)])
    told = residency_of(many)
    assert (list(told.pool_digests), list(told.host_digests)) == (["a", "b"], ["c"])
    assert list(told.disk_digests) == many.disk_digests[:-3]  # 50,000 in all


@contextlib.contextmanager
def nobody_at(port: int = 0) -> Iterator[int]:
    """A port that is taken, by this test or before, and where nobody listens."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", port))
        yield held.getsockname()[1]


async def test_control_plane_may_come_later() -> None:
    plane = FakeControlPlane()
    with contextlib.ExitStack() as nobody:
        port = nobody.enter_context(nobody_at())
        async with member(f"127.0.0.1:{port}") as joined:
            waiting = asyncio.create_task(joined.wait_joined())
            await asyncio.sleep(0.3)
            assert not waiting.done()
            nobody.close()
            async with serving(plane, port):
                await asyncio.wait_for(waiting, 60)


async def test_joins_again_after_not_found_and_after_an_outage() -> None:
    plane = FakeControlPlane()
    async with serving(plane) as server:
        port = server.port
        joined = FleetMember(
            server.address,
            TOKEN,
            join=JOIN,
            report=lambda: (load_of(ready_message(), None), residency_of(None)),
            on_keys=keys.append,
        )
        joined.start()
        await joined.wait_joined()
        plane.forget()
        await eventually(lambda: len(plane.joins) == 2)
    try:
        with nobody_at(port):
            await asyncio.sleep(0.2)
        plane.forget()
        async with serving(plane, port):
            await eventually(lambda: len(plane.joins) == 3)
            number = len(plane.heartbeats)
            await eventually(lambda: len(plane.heartbeats) > number)
            await joined.stop()
            assert len(plane.leaves) == 1
    finally:
        await joined.stop()


async def test_new_keys_arrive_with_heartbeats() -> None:
    plane = FakeControlPlane()
    async with serving(plane) as server, member(server.address) as joined:
        await joined.wait_joined()
        plane.keys = [*plane.keys, fleet_pb2.TicketKey(key_id="k2", key=b"2" * 32)]
        await eventually(lambda: [key.key_id for key in keys[-1]] == [KEY_ID, "k2"])


async def test_a_wrong_token_is_told_at_once() -> None:
    plane = FakeControlPlane()
    async with serving(plane) as server, member(server.address, token="wrong") as joined:
        with pytest.raises(UnauthenticatedError, match="token"):
            await asyncio.wait_for(joined.wait_joined(), 60)
    assert plane.leaves == []


async def test_joins_over_tls_and_gives_up_on_who_is_not_of_the_fleet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    tls = FleetTls(write_files(tmp_path / "ours", authority))
    foreign = FleetTls(write_files(tmp_path / "foreign", trustme.CA()))
    both = FleetTls(write_files(tmp_path / "both", trustme.CA()))
    both.files.value = dataclasses.replace(
        foreign.certificate,
        for_channel=grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            (tmp_path / "foreign/key.pem").read_bytes(),
            (tmp_path / "foreign/cert.pem").read_bytes(),
        ),
    )
    monkeypatch.setattr(fleet, "_PATIENCE_S", 0.2)
    plane = FakeControlPlane()
    async with serving(plane, tls=tls) as server:
        async with member(server.address, tls=tls) as joined:
            await asyncio.wait_for(joined.wait_joined(), 60)
        async with member(server.address, tls=foreign) as joined:
            with pytest.raises(FailedPreconditionError, match="none of the authorities") as told:
                await asyncio.wait_for(joined.wait_joined(), 60)
        assert told.value.reason == "FLEET_TLS_MISMATCH"
        # Whom the other side refuses hears too little to be sure: it is told, and tries on.
        for refused in (None, both):
            caplog.clear()
            async with member(server.address, tls=refused):
                await eventually(lambda: "the log of that side says" in caplog.text)
    assert len(plane.joins) == 1
    async with serving(plane) as server, member(server.address, tls=tls) as joined:
        with pytest.raises(FailedPreconditionError, match="that side speaks plaintext"):
            await asyncio.wait_for(joined.wait_joined(), 60)


async def test_a_conflict_is_waited_out_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    conflict = FailedPreconditionError("BASE_MODEL_CONFLICT", "another fingerprint")
    plane = FakeControlPlane()
    plane.join_errors = [conflict, UnavailableError("STORE_UNAVAILABLE", "redis is down")]
    async with serving(plane) as server:
        async with member(server.address) as joined:
            await asyncio.wait_for(joined.wait_joined(), 60)
        assert len(plane.joins) == 3
        monkeypatch.setattr(fleet, "_PATIENCE_S", 0.2)
        plane.join_errors = [conflict] * 50
        async with member(server.address) as joined:
            with pytest.raises(FailedPreconditionError, match="another fingerprint"):
                await asyncio.wait_for(joined.wait_joined(), 60)


class _HangsAtTheEnd(FakeControlPlane):
    async def Leave(self, request: fleet_pb2.LeaveRequest, context: Any) -> fleet_pb2.LeaveResponse:
        self.leaves.append(request)
        await asyncio.sleep(1000)
        raise AssertionError("nobody waits so long")


@pytest.mark.parametrize("hangs", [False, True])
async def test_leaving_takes_no_longer_than_its_timeout(
    monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """A control plane that hangs, or is gone."""
    plane = _HangsAtTheEnd()
    async with serving(plane) as server:
        joined = FleetMember(
            server.address,
            TOKEN,
            join=JOIN,
            report=lambda: (load_of(ready_message(), None), residency_of(None)),
            on_keys=keys.append,
        )
        joined.start()
        await joined.wait_joined()
        if hangs:
            monkeypatch.setattr(fleet, "_LEAVE_TIMEOUT_S", 0.3)
            async with asyncio.timeout(50):
                await joined.stop()
    async with asyncio.timeout(50):
        await joined.stop()


async def test_each_directive_is_taken_once_and_acknowledged() -> None:
    plane = FakeControlPlane()

    def received() -> int:
        return plane.heartbeats[-1].received_directives if plane.heartbeats else 0

    async with serving(plane) as server, member(server.address) as joined:
        await joined.wait_joined()
        plane.directives = [
            fleet_pb2.Directive(sequence=n, action=fleet_pb2.ADAPTER_ACTION_UNPIN, digest=str(n))
            for n in (1, 2)
        ]
        await eventually(lambda: received() == 2)
        assert [each.digest for each in directives] == ["1", "2"]
        # After another Join the numbers begin anew.
        plane.directives = [fleet_pb2.Directive(sequence=1, digest="pin")]
        plane.forget()
        await eventually(lambda: len(directives) == 3)
        assert directives[-1].digest == "pin"
        await eventually(lambda: received() == 1)
        assert len(directives) == 3


async def test_pins_that_were_undone_without_a_lease_are_undone_here() -> None:
    def directive(sequence: int, action: fleet_pb2.AdapterAction, digest: str):
        return fleet_pb2.Directive(sequence=sequence, action=action, digest=digest)

    pin = fleet_pb2.ADAPTER_ACTION_PIN
    unpin = fleet_pb2.ADAPTER_ACTION_UNPIN
    plane = FakeControlPlane()
    async with serving(plane) as server, member(server.address) as joined:
        await joined.wait_joined()
        plane.directives = [
            directive(1, pin, "kept"),
            directive(2, pin, "undone"),
            directive(3, pin, "unpinned"),
            directive(4, unpin, "unpinned"),
            directive(5, fleet_pb2.ADAPTER_ACTION_PREFETCH, "undone"),
        ]
        await eventually(lambda: len(directives) == 5)
        plane.directives = [directive(1, pin, "kept")]
        plane.forget()
        await eventually(lambda: len(directives) == 7)
        assert [(each.action, each.digest) for each in directives[5:]] == [
            (pin, "kept"),
            (unpin, "undone"),
        ]
        # A new engine has no pins to be undone.
        await joined.pause()
        plane.directives = []
        joined.resume(8)
        number = len(plane.heartbeats)
        await eventually(lambda: len(plane.heartbeats) >= number + 3)
        assert len(directives) == 7
        # A clock that was set back makes no process older than itself.
        await joined.pause()
        joined.resume(3)
        await eventually(lambda: plane.members.get("dp-1") == 9)


class _Hanging(FakeControlPlane):
    async def Heartbeat(
        self, request: fleet_pb2.HeartbeatRequest, context: Any
    ) -> fleet_pb2.HeartbeatResponse:
        self.heartbeats.append(request)
        await asyncio.sleep(1000)
        raise AssertionError("nobody waits so long")


async def test_where_one_of_two_control_planes_hangs_the_other_hears_heartbeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "_HEARTBEAT_TIMEOUT_S", 1.0)
    hanging, sound = _Hanging(), FakeControlPlane()
    sound.members = hanging.members  # as both have one Redis
    async with (
        serving(hanging) as first,
        serving(sound) as second,
        member(f"ipv4:{first.address},{second.address}") as joined,
    ):
        await joined.wait_joined()
        await eventually(lambda: len(sound.heartbeats) >= 2)
        # A second each, so that the lease holds.
        assert len(hanging.heartbeats) <= 3
