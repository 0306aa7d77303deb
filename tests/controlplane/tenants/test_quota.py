"""Admit holds tenants to their limits, over all replicas, in one round trip."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis import Redis

from chorale import tickets
from chorale.errors import ChoraleError
from chorale.v1 import fleet_pb2
from controlplane.store import keys
from controlplane.store.client import Store
from tests.controlplane.tenants.quota import admit, limit, refusal, show
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane, failure, running

SIZE = {"num_tokens": 10}


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url, decode_responses=True)


def age(redis: Redis, tenant: str, seconds: float) -> None:
    """As if what the tenant has used had been used so much earlier."""
    key = keys.TENANT_BUCKET + tenant
    at, requests, tokens = str(redis.get(key)).split()
    redis.set(key, f"{int(at) - int(seconds * 1e6)} {requests} {tokens}", keepttl=True)


async def test_a_burst_and_then_the_rate(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", requests_per_minute=1, request_burst=3)
    for _ in range(3):
        await admit(plane)
    error = await refusal(plane)
    assert error.metadata == {
        "tenant": "acme",
        "limit": "requests_per_minute",
        "requests_per_minute": "1",
        "asked": "1",
    }
    assert error.retry_after_s == pytest.approx(60, abs=20)
    age(redis, "acme", error.retry_after_s - 30)
    await refusal(plane)
    age(redis, "acme", 30)
    await admit(plane)
    await refusal(plane)
    await admit(plane, "somebody-else")
    age(redis, "acme", 3600)  # no more than the burst is saved up
    for _ in range(3):
        await admit(plane)
    await refusal(plane)


async def test_never_more_than_rate_and_burst_over_replicas(redis_url: str) -> None:
    """Four callers over two replicas as fast as they can; each is admitted at a known moment."""
    rate_s, burst, span_s = 20, 100, 1.5
    async with running(redis_url) as one, running(redis_url) as two:
        await one.join(max_running=1000)
        await limit(one, "acme", requests_per_minute=60 * rate_s, request_burst=burst)
        began_s = time.monotonic()
        times: list[float] = []
        refused: list[tuple[float, float]] = []  # from when to when it was asked

        async def ask(plane: ControlPlane) -> None:
            while len(refused) < 10 or time.monotonic() < refused[0][1] + span_s:
                asked_s = time.monotonic()
                try:
                    await admit(plane)
                except grpc.aio.AioRpcError:
                    refused.append((asked_s, time.monotonic()))
                else:
                    times.append(time.monotonic())

        await asyncio.gather(*(ask(p) for p in (one, two, one, two)))
    for count, at_s in enumerate(times, start=1):
        assert count <= burst + rate_s * (at_s - began_s) + 1e-3
    # And what there is is given out: all that came up between two refusals, when there was none.
    (_, first_s), (last_s, _) = refused[0], max(refused)
    num_between = sum(at_s > refused[0][0] for at_s in times)
    assert num_between >= rate_s * (last_s - first_s) - 1


async def test_tokens_are_charged_by_what_is_known(plane: ControlPlane) -> None:
    await plane.join(max_running=64)  # the model's context: 128 tokens
    await limit(plane, "acme", tokens_per_minute=6, token_burst=1000)

    async def cost(**fields: object) -> float:
        before = (await show(plane, "acme")).available_tokens
        await admit(plane, **fields)
        return before - (await show(plane, "acme")).available_tokens

    assert await cost(prompt_size=SIZE, max_tokens=20) == pytest.approx(30, abs=8)
    assert await cost(prompt_size={"num_characters": 40}, max_tokens=20) == pytest.approx(30, abs=8)
    assert await cost(prompt_size=SIZE) == pytest.approx(128, abs=8)
    assert await cost(prompt_size=SIZE, max_tokens=10_000) == pytest.approx(128, abs=8)
    assert await cost(model="tiny/llama", prompt_size=SIZE) == pytest.approx(128, abs=8)
    error = await _until_refused(plane, prompt_size=SIZE, max_tokens=90)
    assert error.metadata["limit"] == "tokens_per_minute" and error.metadata["asked"] == "100"
    assert 0 < error.retry_after_s <= 1000
    await admit(plane, max_tokens=1)  # what is smaller still fits


async def _until_refused(plane: ControlPlane, **fields: object) -> ChoraleError:
    for _ in range(20):
        try:
            await admit(plane, **fields)
        except grpc.aio.AioRpcError:
            return await refusal(plane, **fields)
    raise AssertionError("nothing was refused")


async def test_measured_characters_per_token(plane: ControlPlane) -> None:
    await plane.join()
    outlook = fleet_pb2.Outlook(max_batch_tokens=64)
    request = fleet_pb2.HeartbeatRequest(
        data_plane_id="dp-0",
        incarnation=1,
        load=fleet_pb2.Load(max_running=64, outlook=outlook, characters_per_token=2.0),
    )
    await plane.fleet.Heartbeat(request, metadata=AUTHORIZATION)
    await limit(plane, "acme", tokens_per_minute=1, token_burst=100)
    await admit(plane, "other")
    await admit(plane, prompt_size={"num_characters": 100}, max_tokens=10)
    assert (await show(plane, "acme")).available_tokens == pytest.approx(40, abs=5)


async def test_one_larger_than_the_burst_takes_all_of_it(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", tokens_per_minute=6, token_burst=50)
    await admit(plane, prompt_size=SIZE)
    error = await refusal(plane, prompt_size=SIZE)
    assert error.metadata["asked"] == "128"
    assert error.retry_after_s == pytest.approx(500, abs=60)
    age(redis, "acme", 501)
    await admit(plane, prompt_size=SIZE)


async def test_nothing_at_all(plane: ControlPlane) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", requests_per_minute=0)
    assert (await refusal(plane)).retry_after_s is None
    await limit(plane, "acme", tokens_per_minute=0)
    assert (await refusal(plane)).retry_after_s is None


async def test_all_others_have_the_default_each(plane: ControlPlane) -> None:
    await plane.join(max_running=64)
    await limit(plane, "*", requests_per_minute=1)
    await limit(plane, "acme", requests_per_minute=2)
    for tenant, times in (("acme", 2), ("one", 1), ("two", 1), ("", 1)):
        for _ in range(times):
            await admit(plane, tenant)
        assert (await refusal(plane, tenant)).metadata["tenant"] == (tenant or "default")


async def test_without_limits_nothing_is_written(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", requests_per_minute=2)
    for _ in range(3):
        await admit(plane, "somebody")
    await limit(plane, "ranked", max_priority=3)
    await admit(plane, "ranked")
    assert redis.keys(keys.TENANT_BUCKET + "*") == []
    assert not redis.exists(keys.DEFAULT_BUCKETS)


async def test_what_is_used_expires_when_it_is_made_up_for(
    plane: ControlPlane, redis: Redis
) -> None:
    await plane.join(max_running=64)
    rates = {"tokens_per_minute": 6, "token_burst": 600}
    await limit(plane, "acme", requests_per_minute=60, request_burst=100, **rates)
    await admit(plane, prompt_size=SIZE, max_tokens=10)
    key = keys.TENANT_BUCKET + "acme"
    assert 100_000 < redis.pttl(key) <= 200_000  # 20 tokens at 0.1/s; the request takes a second
    assert not redis.exists(keys.DEFAULT_BUCKETS)
    await limit(plane, "acme", requests_per_minute=1)  # its pace from now on
    assert 40_000 < redis.pttl(key) <= 60_000
    await refusal(plane)


async def test_made_up_tenants_are_bounded(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=64)
    await limit(plane, "*", requests_per_minute=2, request_burst=2)
    await admit(plane, "first")
    later_ms = int(time.time() * 1000) + 60_000
    redis.zadd(keys.DEFAULT_BUCKETS, {f"made-up-{i}": later_ms for i in range(9_999)})
    for tenant in ("x", "y"):
        await admit(plane, tenant)
    assert (await refusal(plane, "z")).metadata["tenant"] == "z"  # they share one by now
    assert redis.zcard(keys.DEFAULT_BUCKETS) == 10_000
    await admit(plane, "first")
    redis.zadd(keys.DEFAULT_BUCKETS, {f"made-up-{i}": 1 for i in range(9_999)})
    await admit(plane, "z")
    assert redis.zcard(keys.DEFAULT_BUCKETS) == 2


async def test_a_clock_that_is_set_back(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", requests_per_minute=60, request_burst=1)
    await admit(plane)
    age(redis, "acme", -3600)
    assert (await refusal(plane)).retry_after_s <= 1
    age(redis, "acme", 3601)
    await admit(plane)


async def test_what_finds_no_place_is_not_charged(plane: ControlPlane, redis: Redis) -> None:
    await limit(plane, "acme", requests_per_minute=5, tokens_per_minute=500)
    for _ in range(20):  # four times what it may
        error = await failure(admit(plane, prompt_size=SIZE, max_tokens=10))
        assert error.reason == "NO_DATA_PLANE"
        await plane.until_written()  # it is given back behind the requests' backs
    await failure(admit(plane, model="stranger"))
    await plane.until_written()
    seen = await show(plane, "acme")
    assert (seen.available_requests, seen.available_tokens) == (5, 500)


async def test_a_base_model_that_nobody_knows(plane: ControlPlane) -> None:
    await limit(plane, "acme", tokens_per_minute=100)
    for fields in ({}, {"max_tokens": 4_000_000_000}):
        error = await failure(admit(plane, prompt_size=SIZE, **fields))
        assert error.reason == "NO_DATA_PLANE"


async def test_what_is_refused_is_no_demand(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", requests_per_minute=1)
    await admit(plane)
    for _ in range(5):
        await refusal(plane)
    await plane.until_written()
    assert redis.hget(keys.DATA_PLANE + "dp-0", "num_placed") == "1"
    assert redis.zscore(keys.DEMAND + "1", ":tiny/llama") is not None
    fields = redis.hgetall(keys.ADMISSIONS)
    assert fields["begun"] == "1"


async def test_a_request_that_goes_on_is_charged_once(plane: ControlPlane, tmp_path: Path) -> None:
    for i in range(2):
        await plane.join(f"dp-{i}", max_running=64)
    await plane.register("voice", make_adapter_dir(tmp_path / "1"))
    await limit(plane, "acme", requests_per_minute=1, tokens_per_minute=1000)
    first = await admit(plane, model="voice", prompt_size=SIZE, max_tokens=10)
    fields = {"model": "voice@1", "excluded_data_plane_ids": [first.data_plane_id]}
    await refusal(plane, **fields)  # saying so is not enough
    second = await admit(plane, continued_ticket=first.ticket, **fields)
    third = await admit(plane, model="voice@1", continued_ticket=second.ticket)
    for wrong in (
        first.ticket[:-1] + b"x",
        b"no ticket",
        first.ticket + bytes(20_000),
    ):
        await refusal(plane, model="voice@1", continued_ticket=wrong)
    await refusal(plane, model="tiny/llama", continued_ticket=first.ticket)
    await limit(plane, "emca", requests_per_minute=1)
    await admit(plane, "emca")
    await refusal(plane, "emca", model="voice@1", continued_ticket=first.ticket)
    # One request does not move for ever: so many tickets come of a charge, in any order.
    for _ in range(62):
        await admit(plane, model="voice@1", continued_ticket=third.ticket)
    await refusal(plane, model="voice@1", continued_ticket=third.ticket)
    await refusal(plane, model="voice@1", continued_ticket=first.ticket)


async def test_a_tenant_s_priority(redis_url: str) -> None:
    async with running(redis_url, max_priority=1) as plane:
        ticket_keys = {key.key_id: key.key for key in (await plane.join(max_running=4)).ticket_keys}
        await limit(plane, "gold", max_priority=7)
        await limit(plane, "lead", max_priority=-3)
        await limit(plane, "usual", requests_per_minute=60)
        for tenant, highest in (("gold", 7), ("lead", -3), ("usual", 1), ("none", 1)):
            ticket = (await admit(plane, tenant)).ticket
            assert tickets.genuine(ticket, ticket_keys).max_priority == highest


async def test_one_round_trip(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    await plane.join(max_running=64)
    await limit(plane, "acme", requests_per_minute=10, tokens_per_minute=100_000)
    ran: list[str] = []
    run = Store.run

    async def noted(store: Store, name: str, *args: str | int) -> Any:
        ran.append(name)
        return await run(store, name, *args)

    monkeypatch.setattr(Store, "run", noted)
    for _ in range(10):
        await admit(plane, prompt_size=SIZE)
    await refusal(plane)
    await asyncio.sleep(0.2)
    behind = {"reserve", "predict", "prefetch"}
    assert [name for name in ran if name not in behind] == ["admit"] * 11
