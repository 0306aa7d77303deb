"""What data planes tell of generations that count for their tenants."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest

from chorale.errors import ChoraleError, UnavailableError
from chorale.v1 import admission_pb2
from dataplane.rpc import generations as module
from dataplane.rpc.fleet import FleetMember
from dataplane.rpc.generations import Generations
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


def claims(**fields: object) -> admission_pb2.TicketClaims:
    given: dict[str, object] = {"ticket_id": os.urandom(16), "tenant": "acme"}
    given |= {"counts_running": True, **fields}
    return admission_pb2.TicketClaims(**given)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def telling(plane: FakeControlPlane, generations: Generations) -> AsyncIterator[None]:
    async with serving(plane) as server:
        member = FleetMember(
            server.address,
            TOKEN,
            join=JOIN,
            report=lambda: (None, None),  # type: ignore[arg-type, return-value]
            on_keys=lambda _keys: None,
            generations=generations,
        )
        member.start()
        try:
            yield
        finally:
            await member.stop()


def seen(plane: FakeControlPlane) -> list[tuple[bytes, bool]]:
    return [(each.ticket_id, each.has_ended) for told in plane.generations for each in told]


async def test_who_runs_is_told_again_and_who_ended_once_and_at_once() -> None:
    plane, generations = FakeControlPlane(), Generations()
    plane.holds_ms = 800  # so every 200 ms, as some of the reports may be lost
    going_on = claims(first_ticket_id=b"f" * 16)
    async with telling(plane, generations):
        await asyncio.sleep(0.2)
        assert not plane.generations, "nothing is told while nothing counts"
        with generations.running(going_on):
            await eventually(lambda: len(plane.generations) >= 2)
        await eventually(lambda: (going_on.ticket_id, True) in seen(plane))
        count = len(plane.generations)
        await asyncio.sleep(0.5)
        assert len(plane.generations) == count, "and then no more"
    assert seen(plane).count((going_on.ticket_id, True)) == 1
    first = plane.generations[0][0]
    assert (first.tenant, first.first_ticket_id) == ("acme", b"f" * 16)


async def test_an_end_is_told_before_the_next_report_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_INTERVAL_S", 1000.0)
    plane, generations = FakeControlPlane(), Generations()
    plane.holds_ms = 10_000_000
    own = claims()
    async with telling(plane, generations):
        with generations.running(own):
            await eventually(lambda: plane.generations)
        await eventually(lambda: (own.ticket_id, True) in seen(plane))


async def test_tickets_that_do_not_count_are_not_told() -> None:
    plane, generations = FakeControlPlane(), Generations()
    async with telling(plane, generations):
        with generations.running(claims(counts_running=False)):
            await asyncio.sleep(0.3)
    assert not plane.generations


async def test_ends_are_told_until_they_arrive() -> None:
    plane, generations = FakeControlPlane(), Generations()
    plane.report_errors = [UnavailableError("STORE_UNAVAILABLE", "away")]
    own = claims()
    with generations.running(own):
        pass
    async with telling(plane, generations):
        await eventually(lambda: seen(plane) == [(own.ticket_id, True)])
    assert plane.generations[0][0].first_ticket_id == own.ticket_id


async def test_more_than_a_report_holds_are_told_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INTERVAL_S", 1000.0)
    plane, generations = FakeControlPlane(), Generations()
    plane.holds_ms = 800  # so every 200 ms, as some of the reports may be lost
    many = [claims() for _ in range(3000)]
    with contextlib.ExitStack() as running:
        for each in many:
            running.enter_context(generations.running(each))
        async with telling(plane, generations):
            await eventually(lambda: len(plane.generations) >= 3)
    assert all(len(told) == 2000 for told in plane.generations)
    assert {ticket_id for ticket_id, _ in seen(plane)} == {each.ticket_id for each in many}


@pytest.mark.parametrize("prompt", ["hello", ""])
async def test_a_generation_counts_from_its_ticket_to_its_end(
    start_rig: StartRig, prompt: str
) -> None:
    """Refused ones, too."""
    plane = FakeControlPlane()
    async with start_rig(FakeScript()) as rig, telling(plane, rig.service.generations):
        with contextlib.suppress(ChoraleError):
            await rig.generate(
                prompt=prompt, ticket=make_ticket(tenant="acme", counts_running=True)
            )
        await eventually(lambda: [ended for _, ended in seen(plane)][-1:] == [True])
