"""How many generations a tenant has at once, over all replicas and data planes."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from redis import Redis

from chorale import tickets
from chorale.v1 import admission_pb2 as admission_pb
from chorale.v1 import fleet_pb2 as pb
from controlplane.store import keys
from controlplane.store.client import Store
from controlplane.tenants.running import MAX_TOLD
from tests.controlplane.tenants.quota import admit, limit, refusal, show
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane, failure, running
from tests.helpers.waiting import eventually

MODEL = "tiny/llama"


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url, decode_responses=True)


def age(redis: Redis, tenant: str, seconds: float) -> None:
    """As if all that was told of it had been told so much earlier."""
    key = keys.TENANT_RUNNING + tenant
    for request, until_ms in redis.zrange(key, 0, -1, withscores=True):
        redis.zadd(key, {request: until_ms - int(seconds * 1000)})


def report(place: admission_pb.AdmitResponse, *, has_ended: bool = False) -> pb.GenerationReport:
    """As the data plane of the ticket would make it."""
    signed = admission_pb.SignedTicket.FromString(place.ticket)
    claims = admission_pb.TicketClaims.FromString(signed.claims)
    assert claims.counts_running
    return pb.GenerationReport(
        tenant=claims.tenant,
        first_ticket_id=claims.first_ticket_id or claims.ticket_id,
        ticket_id=claims.ticket_id,
        has_ended=has_ended,
    )


async def tell(plane: ControlPlane, *reports: pb.GenerationReport) -> float:
    """Returns how long it holds, in seconds."""
    request = pb.ReportGenerationsRequest(generations=reports)
    answer = await plane.fleet.ReportGenerations(request, metadata=AUTHORIZATION)
    return answer.holds.ToNanoseconds() / 1e9


async def end(plane: ControlPlane, *places: admission_pb.AdmitResponse) -> None:
    await tell(plane, *(report(place, has_ended=True) for place in places))


async def num_running(plane: ControlPlane, tenant: str = "acme") -> int:
    return (await show(plane, tenant)).num_running


async def go_on(plane: ControlPlane, first: admission_pb.AdmitResponse, **fields: Any) -> Any:
    """As gateways do, which show the first ticket each time."""
    return await admit(plane, model=MODEL, continued_ticket=first.ticket, **fields)


async def test_never_more_over_replicas(redis_url: str) -> None:
    """Sixty at once, five at a time, each ended by its data plane, until all were served."""
    async with running(redis_url) as one, running(redis_url) as two:
        for i in range(2):
            await one.join(f"dp-{i}", max_running=64)
        await limit(one, "acme", max_running=5)
        under_way = most = num_refused = 0

        async def request(plane: ControlPlane) -> None:
            nonlocal under_way, most, num_refused
            while True:
                try:
                    place = await admit(plane)
                    break
                except grpc.aio.AioRpcError:
                    num_refused += 1
                    await asyncio.sleep(0.01)
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
            await tell(plane, report(place))
            under_way -= 1
            await end(plane, place)

        await asyncio.gather(*(request((one, two)[i % 2]) for i in range(60)))
        assert most == 5 and num_refused > 60
        assert await num_running(two) == 0


async def test_beyond_it_is_refused_with_the_facts(plane: ControlPlane) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", max_running=2)
    first, _ = [await admit(plane) for _ in range(2)]
    error = await refusal(plane)
    assert error.metadata == {
        "tenant": "acme",
        "limit": "max_running",
        "max_running": "2",
        "asked": "1",
    }
    assert error.retry_after_s == 1.0 and "2 generations at once" in error.message
    await admit(plane, "somebody-else")
    await end(plane, first)
    await end(plane, first)  # twice is once
    assert await num_running(plane) == 1
    await admit(plane)
    await refusal(plane)
    await limit(plane, "acme", max_running=3)
    await admit(plane)
    await limit(plane, "acme", max_running=0)
    error = await refusal(plane)
    assert error.retry_after_s is None


async def test_what_nobody_speaks_of_counts_no_more(redis_url: str, redis: Redis) -> None:
    """Of a ticket that was never used, and of data planes of which one is lost."""
    async with running(redis_url, ticket_ttl_s=300.0, lease_s=120.0) as plane:
        await speaks_no_more(plane, redis)


async def speaks_no_more(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", max_running=3)
    lost, living, _ = [await admit(plane, model=MODEL) for _ in range(3)]
    age(redis, "acme", 270)  # a ticket is good for 300 s
    await refusal(plane)
    assert await tell(plane, report(lost), report(living)) == 240.0, "twice the lease"
    age(redis, "acme", 60)
    assert await num_running(plane) == 2, "the one that was never used"
    await tell(plane, report(living))
    age(redis, "acme", 200)
    assert await num_running(plane) == 1
    await admit(plane)
    await admit(plane)
    await refusal(plane)
    # One that was cut off from the control plane is counted again when it is back.
    await tell(plane, report(lost))
    assert await num_running(plane) == 4
    assert 300 - 60 < redis.ttl(keys.TENANT_RUNNING + "acme") <= 306, "and nothing stays for ever"


async def test_a_request_that_goes_on_is_let_in_and_counts_once(plane: ControlPlane) -> None:
    for i in range(2):
        await plane.join(f"dp-{i}", max_running=64)
    await limit(plane, "acme", max_running=2)
    first, other = [await admit(plane, model=MODEL) for _ in range(2)]
    await tell(plane, report(first), report(other))
    second = await go_on(plane, first)
    assert await num_running(plane) == 2
    # Its first data plane lives after all: it runs there as little as it ends there.
    await tell(plane, report(first), report(second))
    assert await num_running(plane) == 2
    await end(plane, first)
    assert await num_running(plane) == 2
    third = await go_on(plane, first)
    await end(plane, second)
    await tell(plane, report(second), report(third))
    assert await num_running(plane) == 2
    await refusal(plane)
    await end(plane, third)
    assert await num_running(plane) == 1
    await end(plane, third, other)
    assert await num_running(plane) == 0


async def test_it_is_let_in_when_it_had_lapsed(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", max_running=1)
    first = await admit(plane, model=MODEL)
    age(redis, "acme", 3600)
    await admit(plane)
    second = await go_on(plane, first)
    assert await num_running(plane) == 2
    await refusal(plane)
    age(redis, "acme", 3600)
    assert await num_running(plane) == 0
    await tell(plane, report(first))
    assert await num_running(plane) == 0, "it goes on by its second ticket"
    await tell(plane, report(second))
    assert await num_running(plane) == 1
    age(redis, "acme", 3600)
    await admit(plane)
    assert redis.hlen(keys.TENANT_HOLDERS + "acme") == 0, "what lapsed is forgotten"


async def test_who_shows_no_ticket_of_its_own_is_a_new_request(plane: ControlPlane) -> None:
    joined = await plane.join(max_running=64)
    await limit(plane, "acme", max_running=1)
    await limit(plane, "other", max_running=1)
    mine, theirs = await admit(plane, model=MODEL), await admit(plane, "other", model=MODEL)
    for forged in (theirs.ticket, b"x", mine.ticket[:-1]):
        await refusal(plane, model=MODEL, continued_ticket=forged)
    keys_of = {key.key_id: key.key for key in joined.ticket_keys}
    for _ in range(64):
        last = await go_on(plane, mine)
    error = await refusal(plane, model=MODEL, continued_ticket=mine.ticket)
    assert error.metadata["limit"] == "max_running"
    await end(plane, last)
    anew = tickets.genuine((await go_on(plane, mine)).ticket, keys_of)
    assert not anew.first_ticket_id, "it stands for itself"


async def test_what_was_placed_nowhere_counts_nowhere(plane: ControlPlane) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", max_running=1)
    for _ in range(3):
        error = await failure(admit(plane, excluded_data_plane_ids=["dp-0"]))
        assert error.reason == "ALL_EXCLUDED"
        await plane.until_written()
        assert await num_running(plane) == 0
    await admit(plane)
    await refusal(plane, excluded_data_plane_ids=["dp-0"])


async def test_beside_the_rates(plane: ControlPlane) -> None:
    """Who is refused by one limit takes nothing off the other."""
    await plane.join(max_running=64)
    await limit(plane, "acme", max_running=2, requests_per_minute=1, request_burst=3)
    await admit(plane)
    await admit(plane)
    for _ in range(3):
        assert (await refusal(plane)).metadata["limit"] == "max_running"
    assert (await show(plane, "acme")).available_requests == pytest.approx(1.4, abs=0.4)
    await limit(plane, "acme", max_running=9, requests_per_minute=1, request_burst=3)
    await admit(plane)
    for _ in range(3):
        assert (await refusal(plane)).metadata["limit"] == "requests_per_minute"
    assert await num_running(plane) == 3


async def test_of_all_who_have_none_each_has_its_own(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=64)
    place = await admit(plane, "free", model=MODEL)
    signed = admission_pb.SignedTicket.FromString(place.ticket)
    assert not admission_pb.TicketClaims.FromString(signed.claims).counts_running
    assert not redis.keys(keys.TENANT_RUNNING + "*"), "without limits nothing is written"
    assert not (await show(plane, "free")).HasField("num_running")
    await limit(plane, "*", max_running=1)
    for tenant in ("a", "b"):
        await admit(plane, tenant)
        await refusal(plane, tenant)


async def test_reports_that_cannot_be(plane: ControlPlane, redis: Redis) -> None:
    odd = [
        pb.GenerationReport(tenant="no name", first_ticket_id=b"a" * 16, ticket_id=b"a" * 16),
        pb.GenerationReport(tenant="acme", first_ticket_id=b"a" * 15, ticket_id=b"a" * 16),
        pb.GenerationReport(tenant="acme", first_ticket_id=b"a" * 16, ticket_id=b"a" * 17),
        pb.GenerationReport(first_ticket_id=b"a" * 16, ticket_id=b"a" * 16),
    ]
    await tell(plane, *odd)
    assert not redis.keys(keys.TENANT_RUNNING + "*")
    good = pb.GenerationReport(tenant="acme", first_ticket_id=b"a" * 16, ticket_id=b"a" * 16)
    await tell(plane, *[good] * MAX_TOLD)
    error = await failure(tell(plane, *[good] * (MAX_TOLD + 1)))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "TOO_MANY_GENERATIONS")
    request = pb.ReportGenerationsRequest(generations=[good])
    error = await failure(plane.fleet.ReportGenerations(request))
    assert error.code.name == "UNAUTHENTICATED"


async def test_an_admission_that_is_cancelled_holds_no_place(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has counted it by then, and nobody gets the ticket."""
    run, counted = Store.run, asyncio.Event()

    async def slow(store: Store, name: str, *args: Any) -> Any:
        reply = await run(store, name, *args)
        if name == "admit":
            counted.set()
            await asyncio.sleep(600)
        return reply

    async with running(redis_url) as plane:
        await plane.join("dp-a")
        await limit(plane, "acme", max_running=1)
        monkeypatch.setattr(Store, "run", slow)
        call = asyncio.ensure_future(admit(plane, model=MODEL))
        await counted.wait()
        assert await num_running(plane) == 1
        call.cancel()

        async def is_free() -> bool:
            return await num_running(plane) == 0

        await eventually(is_free)
