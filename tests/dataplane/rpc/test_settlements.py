from __future__ import annotations

import pytest

from chorale.errors import ChoraleError
from chorale.v1 import fleet_pb2
from dataplane.rpc.fleet import FleetMember
from dataplane.rpc.settlements import Settlements
from tests.dataplane.rpc.conftest import StartRig
from tests.dataplane.rpc.test_fleet import JOIN
from tests.helpers.fake_control_plane import (
    TOKEN,
    FakeControlPlane,
    eventually,
    make_ticket,
    serving,
)
from tests.helpers.fake_engine import FakeScript
from tests.helpers.rig import BACKEND, ids_of


def told(message: fleet_pb2.Settlement | None) -> tuple[int, dict[str, int]] | None:
    if message is None:
        return None
    return message.number, {each.tenant: each.num_tokens for each in message.unused}


def test_a_batch_is_told_until_it_has_arrived() -> None:
    settlements = Settlements()
    assert settlements.next() is None
    settlements.note("acme", 100, 30)
    settlements.note("acme", 10, 30)
    settlements.note("free", 0, 30)
    settlements.note("exact", 30, 30)
    settlements.note("more", 10, 15)
    first = told(settlements.next())
    assert first == (1, {"acme": 50, "more": -5})
    settlements.note("acme", 3, 1)
    assert told(settlements.next()) == first
    settlements.arrived()
    assert told(settlements.next()) == (2, {"acme": 2})
    settlements.joined()  # it may have arrived
    assert settlements.next() is None
    settlements.note("acme", 3, 1)
    assert told(settlements.next()) == (3, {"acme": 2})


def test_what_waits_is_bounded() -> None:
    settlements = Settlements()
    for number in range(10_500):
        settlements.note(f"t{number}", 2, 1)
    settlements.note("t0", 2, 1)
    seen: dict[str, int] = {}
    while (message := settlements.next()) is not None:
        assert len(message.unused) <= 1000
        seen |= told(message)[1]  # pyright: ignore[reportOptionalSubscript]
        settlements.arrived()
    assert len(seen) == 10_000 and seen["t0"] == 2


async def test_what_has_finished_is_settled(start_rig: StartRig) -> None:
    reply = ids_of(" world, this is")
    used = len(BACKEND.encode("hello").ids) + len(reply)
    async with start_rig(FakeScript(tokens=reply)) as rig:
        sampling = {"max_tokens": len(reply)}
        for tenant, charged in (("acme", 100), ("acme", 200), ("free", 0)):
            ticket = make_ticket(tenant=tenant, charged_tokens=charged)
            await rig.generate(ticket=ticket, sampling=sampling)
        # One that goes on came to what it has in all, the two tokens of before among them.
        ticket = make_ticket(tenant="moved", charged_tokens=100)
        await rig.generate(ticket=ticket, sampling=sampling, generated_token_ids=reply[:2])
        with pytest.raises(ChoraleError):
            ticket = make_ticket(tenant="failed", charged_tokens=100)
            await rig.generate(ticket=ticket, prompt="")
        seen = told(rig.service.settlements.next())
    assert seen == (1, {"acme": 300 - 2 * used, "moved": 100 - used})


async def test_heartbeats_tell_it_once() -> None:
    plane = FakeControlPlane()
    settlements = Settlements()
    async with serving(plane) as server:
        member = FleetMember(
            server.address,
            TOKEN,
            join=JOIN,
            report=lambda: (fleet_pb2.Load(), fleet_pb2.Residency()),
            on_keys=lambda _keys: None,
            settlements=settlements,
        )
        member.start()
        try:
            await member.wait_joined()
            settlements.note("acme", 5, 2)
            await eventually(lambda: any(each.HasField("settlement") for each in plane.heartbeats))
            count = len(plane.heartbeats)
            await eventually(lambda: len(plane.heartbeats) > count + 2)
        finally:
            await member.stop()
    (sent,) = [each.settlement for each in plane.heartbeats if each.HasField("settlement")]
    assert told(sent) == (1, {"acme": 3})
