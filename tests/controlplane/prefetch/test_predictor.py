"""Demand in Redis, who predicts, and what comes of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar, cast

import pytest
from redis.asyncio import Redis

from controlplane.admission.reservations import Reservations
from controlplane.prefetch.batch import Asked, DemandBatch
from controlplane.prefetch.demand import Demand
from controlplane.prefetch.limits import DemandLimits
from controlplane.prefetch.policy import PrefetchPolicy
from controlplane.prefetch.predictor import Predictor
from controlplane.store import keys
from controlplane.store.client import Store
from tests.helpers.demand import BASE, digest_of, identity_of, put_adapter, put_plane
from tests.helpers.waiting import eventually

LIMITS = DemandLimits()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    opened = Store(redis_url)
    yield opened
    await opened.close()


async def ask(store: Store, *names: str, tenant: str = "t", plane: str = "dp-0") -> None:
    batch = DemandBatch(LIMITS)
    for name in names:
        batch.add(plane, Asked(tenant, BASE, digest_of(name) if name else "", f"{name}@1"))
    await store.run("reserve", batch.take(), "")


async def forward(redis: Redis, seconds: float) -> None:
    await redis.hincrby(keys.DEMAND_CLOCK, "now", int(seconds * 1000))  # type: ignore[misc]


def predictor(store: Store, tick_s: float = 1.0) -> Predictor:
    return Predictor(store, PrefetchPolicy(), LIMITS, tick_s=tick_s)


async def learnt(redis: Redis, store: Store) -> None:
    """b follows a."""
    for name in ("a", "b"):
        await put_adapter(redis, name)
    for tenant in "123":
        await ask(store, "a", "b", tenant=tenant)
    await forward(redis, 400)
    await redis.delete(keys.VISITED)
    await put_plane(redis, "dp-0")


async def told(redis: Redis, plane: str = "dp-0") -> list[str]:
    waiting: Any = await redis.zrange(keys.DIRECTIVES + plane, 0, -1)
    return [each.partition(" ")[2] for each in waiting]


async def test_rates_fade_by_half_life(redis: Redis, store: Store) -> None:
    await ask(store, *["a"] * 8)
    demand = Demand(store, LIMITS)
    (before,) = (await demand.view()).adapters
    assert before.name == "a@1" and before.digest == digest_of("a") and before.base_model == BASE
    await forward(redis, 300)
    (after,) = (await demand.view()).adapters
    ratios = [new / old for new, old in zip(after.rates, before.rates, strict=True)]
    assert ratios == pytest.approx([2**-10, 0.5, 2 ** (-1 / 12)], rel=0.02)


async def test_requests_for_the_base_model_are_no_demand(redis: Redis, store: Store) -> None:
    await ask(store, "", "", "a")
    assert [each.name for each in (await Demand(store, LIMITS).view()).adapters] == ["a@1"]
    scores = [
        await redis.zscore(keys.DEMAND + "2", each) for each in (f":{BASE}", identity_of("a"))
    ]
    assert None not in scores and cast("float", scores[0]) > cast("float", scores[1])


async def test_what_a_tenant_asks_for_next_follows(redis: Redis, store: Store) -> None:
    for tenant in "12":
        await ask(store, "a", "a", "b", tenant=tenant)
    await ask(store, "a", "c", tenant="3")
    await ask(store, "a", tenant="4")
    await forward(redis, LIMITS.session_ms / 1000 + 1)
    await ask(store, "d", tenant="4")
    view = {each.name: each for each in (await Demand(store, LIMITS).view()).adapters}
    shares = {each.name: each.share for each in view["a@1"].followers}
    assert shares == pytest.approx({"b@1": 0.5, "c@1": 0.25}, rel=0.01)
    assert not view["b@1"].followers


async def test_a_clock_that_is_set_does_no_harm(redis: Redis, store: Store) -> None:
    await ask(store, "a")
    demand = Demand(store, LIMITS)
    (before,) = (await demand.view()).adapters
    for seen in (10**15, 0):  # set back by far, and then ahead
        await redis.hset(keys.DEMAND_CLOCK, "seen", seen)  # type: ignore[misc]
        (after,) = (await demand.view()).adapters
        # Looking does not move the clock: set back, it lacks the milliseconds since it was moved.
        assert after.rates[2] <= before.rates[2] * (1 + 1e-5)
        assert after.rates[2] >= before.rates[2] * 0.49, "a gap counts for an hour at most"


async def test_b_is_brought_when_a_session_comes_to_a(redis: Redis, store: Store) -> None:
    await learnt(redis, store)
    mine = predictor(store)
    await mine.tick()
    assert mine.is_active and await told(redis) == []
    await ask(store, "a", tenant="new")
    await mine.tick()
    (directive,) = await told(redis)
    assert digest_of("b") in directive and '"prefetch"' in directive and "file:///b" in directive
    await ask(store, "a", tenant="newer")
    await mine.tick()
    assert len(await told(redis)) == 1, "it is asked for already"


@pytest.mark.parametrize("outcome", ["num_hits", "num_late", "num_misses"])
async def test_predictions_are_scored(redis: Redis, store: Store, outcome: str) -> None:
    await learnt(redis, store)
    mine, demand = predictor(store), Demand(store, LIMITS)
    await ask(store, "a", tenant="new")
    await mine.tick()
    (prediction,) = (await demand.view()).predictions
    assert (prediction.name, prediction.data_plane_id) == ("b@1", "dp-0")
    assert prediction.prediction.kind == "follow" and prediction.left_s > 5
    if outcome == "num_misses":
        await forward(redis, 130)
        await mine.tick()
    else:
        if outcome == "num_hits":
            await redis.sadd(keys.RESIDENCY_HOST + "dp-0", digest_of("b"))  # type: ignore[misc]
        await ask(store, "b", tenant="other", plane="dp-1")
        assert (await demand.scores())["follow"].recent == 0, "it was for another data plane"
        for _ in range(2):
            await ask(store, "b", tenant="other")
    score = (await demand.scores())["follow"]
    assert score.num_made == 1 and score.asked_bytes > 0 and score.recent == 1
    found = {name: getattr(score, name) for name in ("num_hits", "num_late", "num_misses")}
    assert found == {"num_hits": 0, "num_late": 0, "num_misses": 0, outcome: 1}
    assert score.recent_hits == (outcome == "num_hits")


async def test_what_a_lost_data_plane_was_to_bring_is_not_scored(
    redis: Redis, store: Store
) -> None:
    await learnt(redis, store)
    mine = predictor(store)
    await ask(store, "a", tenant="new")
    await mine.tick()
    await redis.delete(keys.DATA_PLANE + "dp-0")
    await forward(redis, 130)
    await mine.tick()
    score = (await Demand(store, LIMITS).scores())["follow"]
    assert (score.num_made, score.recent) == (1, 0)
    assert await redis.hlen(keys.PREDICTIONS) == await redis.zcard(keys.PREDICTION_ENDS) == 0  # type: ignore[misc]


async def test_one_predicts_and_another_takes_over(redis: Redis, store: Store) -> None:
    await learnt(redis, store)
    one, other = predictor(store, 60.0), predictor(store, 60.0)
    await one.tick()
    await other.tick()
    assert one.is_active and not other.is_active
    await ask(store, "a", tenant="new")
    await other.tick()
    assert await told(redis) == []
    assert 0 < await redis.pttl(keys.PREDICTOR) <= 300_000
    await redis.pexpire(keys.PREDICTOR, 1)  # the one is dead
    await eventually(lambda: _is_gone(redis))
    await other.tick()
    assert other.is_active and len(await told(redis)) == 1, "what was learnt is in Redis"
    await one.tick()
    assert not one.is_active


async def _is_gone(redis: Redis) -> bool:
    return not await redis.exists(keys.PREDICTOR)


async def test_one_that_stops_makes_way_at_once(redis: Redis, store: Store) -> None:
    one, other = predictor(store, 60.0), predictor(store, 60.0)
    one.start()
    while not one.is_active:
        await asyncio.sleep(0.01)
    await one.stop()
    assert not one.is_active
    await other.tick()
    assert other.is_active
    await one.stop()


async def test_who_has_lost_the_lease_tells_nobody(redis: Redis, store: Store) -> None:
    await learnt(redis, store)
    mine = predictor(store)
    await ask(store, "a", tenant="new")

    async def run(name: str, *args: str | int) -> object:
        if name == "prefetch":
            await redis.set(keys.PREDICTOR, "other")
        return await Store.run(store, name, *args)

    mine._store = type("Spy", (), {"run": staticmethod(run)})()  # type: ignore[assignment]
    await mine.tick()
    assert await told(redis) == []


async def test_a_removed_version_is_forgotten(redis: Redis, store: Store) -> None:
    await learnt(redis, store)
    await redis.delete(keys.ADAPTER + "b")
    await ask(store, "a", tenant="new")
    await predictor(store).tick()
    assert await told(redis) == []
    assert [each.name for each in (await Demand(store, LIMITS).view()).adapters] == ["a@1"]


async def test_adapters_are_bounded_and_the_coldest_go(redis: Redis, store: Store) -> None:
    small = DemandLimits(max_adapters=3)
    for name in ("a", "b", "c", "a", "d"):
        batch = DemandBatch(small)
        batch.add("dp-0", Asked("t", "x", digest_of(name), f"{name}@1"))
        await forward(redis, 10)
        await store.run("reserve", batch.take(), "")
    # One of the three is the base model's own count.
    names = {each.name for each in (await Demand(store, small).view()).adapters}
    assert names == {"a@1", "d@1"}
    assert await redis.hlen(keys.DEMANDED) == 2  # type: ignore[misc]
    assert len(await redis.keys(keys.FOLLOWERS + "*")) <= 2


async def test_demand_is_written_with_the_placements(redis: Redis, store: Store) -> None:
    await put_plane(redis, "dp-0")
    reservations = Reservations(store, DemandBatch(LIMITS))
    reservations.start()
    for _ in range(3):
        reservations.add("dp-0", 0, Asked("t", BASE, digest_of("a"), "a@1"))
    reservations.add("dp-0", 0)
    while await redis.hget(keys.DATA_PLANE + "dp-0", "num_placed") != "4":  # type: ignore[misc]
        await asyncio.sleep(0.01)
    await reservations.stop()
    (found,) = (await Demand(store, LIMITS).view()).adapters
    assert found.rates[0] == pytest.approx(3 * 0.0231, rel=0.05)


async def test_demand_is_written_a_few_times_a_second(redis: Redis, store: Store) -> None:
    class Spy:
        written: ClassVar[list[str]] = []

        async def run(self, name: str, demand: str, *_: str) -> None:
            self.written.append(demand)

    reservations = Reservations(cast("Store", Spy()), DemandBatch(LIMITS))
    reservations.start()
    began_s = time.monotonic()
    for _ in range(60):
        reservations.add("dp-0", 0, Asked("t", BASE, digest_of("a"), "a@1"))
        await asyncio.sleep(0.005)

    def with_demand() -> list[Any]:
        return [json.loads(each)["asked"] for each in Spy.written if each]

    def is_whole() -> bool:
        return sum(row[3] for asked in with_demand() for row in asked if row[0]) == 60

    await eventually(is_whole, "none is lost")
    await reservations.stop()
    assert len(Spy.written) > 20, "placements are written at once"
    assert 2 <= len(with_demand()) <= (time.monotonic() - began_s) / 0.1 + 1


def test_a_batch_is_bounded() -> None:
    batch = DemandBatch(LIMITS)
    assert batch.take() == ""
    for index in range(10_000):
        batch.add("dp-0", Asked(str(index), BASE, digest_of(str(index)), "a@1"))
    assert batch.take().count('"a@1"') < 5000
    assert batch.take() == ""
