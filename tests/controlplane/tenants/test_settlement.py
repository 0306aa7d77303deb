"""What answers came to is made good, once."""

from __future__ import annotations

from typing import Any

import pytest

from chorale import tickets
from chorale.v1 import fleet_pb2 as pb
from tests.controlplane.tenants.quota import admit, limit, refusal, show
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane


async def settle(
    plane: ControlPlane, number: int, incarnation: int = 1, **unused: int
) -> pb.HeartbeatResponse:
    told = [pb.TenantTokens(tenant=name, num_tokens=count) for name, count in unused.items()]
    request = pb.HeartbeatRequest(
        data_plane_id="dp-0",
        incarnation=incarnation,
        load=pb.Load(max_running=64),
        settlement=pb.Settlement(number=number, unused=told),
    )
    return await plane.fleet.Heartbeat(request, metadata=AUTHORIZATION)


async def left(plane: ControlPlane, tenant: str = "acme") -> Any:
    return pytest.approx((await show(plane, tenant)).available_tokens, abs=20)


async def test_each_settlement_counts_once(plane: ControlPlane) -> None:
    await plane.join()
    await limit(plane, "acme", tokens_per_minute=6, token_burst=100, requests_per_minute=600)
    await admit(plane, prompt_size={"num_tokens": 50}, max_tokens=50)
    assert await left(plane) == 0
    await settle(plane, 1, acme=60)
    assert await left(plane) == 60
    await settle(plane, 1, acme=60)
    assert await left(plane) == 60
    await settle(plane, 2, acme=-120)  # it came to more than was thought
    assert await left(plane) == -60
    error = await refusal(plane, prompt_size={"num_tokens": 50}, max_tokens=50)
    assert error.retry_after_s == pytest.approx(1600, abs=200)
    await settle(plane, 3, acme=10_000, stranger=7)  # no more than the burst
    assert (await show(plane, "acme")).available_tokens == 100
    await plane.join(incarnation=2)
    await settle(plane, 1, incarnation=2, acme=-50)
    assert await left(plane) == 50


async def test_odd_settlements_are_left_out(plane: ControlPlane) -> None:
    await plane.join()
    await limit(plane, "acme", tokens_per_minute=600)
    await settle(plane, 1, **{"no name": -5, "x" * 200: -5, "acme": -(2**62)})
    assert (await show(plane, "acme")).available_tokens == 600


async def test_tickets_tell_what_was_charged(plane: ControlPlane) -> None:
    joined = await plane.join(max_running=64)
    ticket_keys = {key.key_id: key.key for key in joined.ticket_keys}
    await limit(plane, "acme", tokens_per_minute=60, token_burst=100)
    await limit(plane, "counted", requests_per_minute=60)
    fields = {"model": "tiny/llama", "prompt_size": {"num_tokens": 50}}
    first = await admit(plane, max_tokens=30, **fields)
    assert tickets.genuine(first.ticket, ticket_keys).charged_tokens == 80
    moved = await admit(plane, max_tokens=30, continued_ticket=first.ticket, **fields)
    claims = tickets.genuine(moved.ticket, ticket_keys)
    assert claims.charged_tokens == 80
    assert claims.first_ticket_id == tickets.genuine(first.ticket, ticket_keys).ticket_id
    for tenant in ("counted", "free"):
        free = await admit(plane, tenant, max_tokens=30, **fields)
        assert tickets.genuine(free.ticket, ticket_keys).charged_tokens == 0
