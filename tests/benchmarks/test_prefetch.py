"""The simulation of predictions: its demand is that of Redis, and it shows what it is to show."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from benchmarks import prefetch
from benchmarks.prefetch_demand import DemandTable
from benchmarks.prefetch_fleet import FarthestTier
from benchmarks.prefetch_traces import GENERATORS
from controlplane.prefetch.batch import Asked, DemandBatch
from controlplane.prefetch.limits import DemandLimits
from controlplane.prefetch.model import KINDS, Ask, Snapshot, Wanted
from controlplane.prefetch.policy import PrefetchPolicy
from controlplane.prefetch.predictor import ask_rows
from controlplane.prefetch.snapshot import decode_snapshot
from controlplane.store import keys
from controlplane.store.client import Store
from tests.helpers.demand import BASE, SIZE, identity_of, put_adapter, put_plane
from tests.helpers.redis import redis_server, redis_url

__all__ = ["redis_server", "redis_url"]

NAMES = [f"a{index}" for index in range(20)]
PLANES = ("dp-0", "dp-1")
IN_HOST = NAMES[:7]
# The clock moves only when the test moves it, and every bound is met.
LIMITS = DemandLimits(
    max_step_ms=0,
    session_ms=5000,
    repeat_ms=2000,
    max_adapters=14,
    max_followers=3,
    max_tenants=4,
    max_visited=5,
    num_top=8,
    max_lookups=14,
    max_predictions=6,
)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, decode_responses=True)
    for name in NAMES:
        await put_adapter(client, name)
    for plane in PLANES:
        await put_plane(client, plane, host=map(identity_of, IN_HOST))
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    opened = Store(redis_url)
    yield opened
    await opened.close()


def describe(identity: str) -> Wanted:
    (name,) = (name for name in NAMES if identity_of(name) == identity)
    digest = identity.partition(":")[0]
    return Wanted(identity, digest, BASE, f"{name}@1", f"file:///{name}", SIZE)


def assert_same(ours: Snapshot, theirs: Snapshot) -> None:
    assert ours.now_s == theirs.now_s
    assert ours.wanted.keys() == theirs.wanted.keys()
    for identity, wanted in ours.wanted.items():
        other = theirs.wanted[identity]
        assert wanted.rate == pytest.approx(other.rate, rel=1e-9)
        assert replace(wanted, rate=0.0) == replace(other, rate=0.0)
    shares = [
        sorted((each.identity, round(each.share, 9), round(each.num_visits, 9)) for each in follows)
        for follows in (ours.follows, theirs.follows)
    ]
    assert shares[0] == shares[1]
    assert sorted(ours.open, key=repr) == sorted(theirs.open, key=repr)
    assert ours.total_rate == pytest.approx(theirs.total_rate, rel=1e-9)
    assert ours.gap_s == (None if theirs.gap_s is None else pytest.approx(theirs.gap_s))
    for kind in KINDS:
        one, other = ours.scores[kind], theirs.scores[kind]
        assert (one.recent, one.recent_hits) == pytest.approx((other.recent, other.recent_hits))
        assert replace(one, recent=0, recent_hits=0) == replace(other, recent=0, recent_hits=0)


@pytest.mark.parametrize("seed", range(3))
async def test_the_table_counts_as_the_scripts_do(redis: Redis, store: Store, seed: int) -> None:
    chance, policy = random.Random(seed), PrefetchPolicy()
    twin = DemandTable(LIMITS, describe, lambda _, identity: identity in held)
    held = {identity_of(name) for name in IN_HOST}
    outcomes: set[str] = set()
    num_followed = num_open = 0
    for _ in range(120):
        await redis.hincrby(keys.DEMAND_CLOCK, "now", chance.randrange(3000))  # type: ignore[misc]
        batch = DemandBatch(LIMITS)
        asked, visits = dict[tuple[str, str, str], int](), list[tuple[str, str]]()
        for _ in range(chance.randrange(1, 5)):
            name = NAMES[min(chance.randrange(20), chance.randrange(20))]
            plane, tenant, identity = (
                chance.choice(PLANES),
                str(chance.randrange(6)),
                identity_of(name),
            )
            batch.add(plane, Asked(tenant, BASE, identity.partition(":")[0], f"{name}@1"))
            for key in (("", f":{BASE}", ""), (plane, identity, f"{name}@1")):
                asked[key] = asked.get(key, 0) + 1
            if dict(visits).get(tenant) != identity:
                visits.append((tenant, identity))
        now_ms = int(await store.run("reserve", batch.take(), ""))
        twin.reserve(now_ms, [(*key, count) for key, count in asked.items()], visits)
        if chance.random() < 0.4:
            continue
        theirs = decode_snapshot(
            await store.run("predict", "me", 60_000, LIMITS.json), LIMITS, policy
        )
        ours = twin.snapshot(now_ms, theirs.planes)
        assert_same(ours, theirs)
        num_followed += len(ours.follows)
        num_open = max(num_open, len(ours.open))
        asks = [
            Ask(chance.choice(PLANES), wanted, chance.choice(KINDS), "host", 0.5, 7.0)
            for wanted in chance.sample(list(ours.wanted.values()), min(4, len(ours.wanted)))
        ]
        (told,) = await store.run("prefetch", "me", LIMITS.json, ask_rows(asks), "[]")
        mine = twin.made(now_ms, asks)
        assert [f"{each.data_plane_id} {each.wanted.identity}" for each in mine] == told
        outcomes |= {
            what
            for score in ours.scores.values()
            for what in ("num_hits", "num_late", "num_misses")
            if getattr(score, what)
        }
    assert outcomes == {"num_hits", "num_late", "num_misses"}
    assert num_followed > 20 and num_open == LIMITS.max_predictions
    assert int(await redis.zcard(keys.DEMAND + "2")) <= LIMITS.max_adapters  # type: ignore[misc]
    assert int(await redis.zcard(keys.SESSIONS)) <= LIMITS.max_tenants  # type: ignore[misc]
    for key in await redis.keys(keys.FOLLOWERS + "*"):
        assert int(await redis.zcard(key)) <= LIMITS.max_followers + 1  # type: ignore[misc]


def test_predictions_find_what_follows() -> None:
    trace = GENERATORS["sessions"](240, 4000, prefetch.RATE)
    (none, _), (ours, scores), (best, _) = (
        prefetch.simulate(trace, how) for how in ("none", "predicted", "clairvoyant")
    )
    assert none.requests == ours.requests == best.requests == 4000
    assert none.wasted_bytes == 0 < ours.wasted_bytes < ours.loaded_bytes
    assert none.found < 0.97 * ours.found < best.found
    score = scores["follow"]
    assert score.num_made > 100 and score.num_hits > score.num_misses / 2


def test_where_nothing_is_to_be_predicted_nothing_is_lost() -> None:
    trace = GENERATORS["uniform"](600, 1500, prefetch.RATE)
    (none, _), (ours, _) = (prefetch.simulate(trace, how) for how in ("none", "predicted"))
    assert ours.requests - ours.found <= 1.01 * (none.requests - none.found)
    assert ours.wasted_bytes <= 0.03 * ours.loaded_bytes


@pytest.mark.parametrize("name", GENERATORS)
def test_traces_are_in_order_and_the_same_every_time(name: str) -> None:
    one, other = (GENERATORS[name](30, 200, 2.0) for _ in range(2))
    assert (one.adapters == other.adapters).all() and (one.times_s == other.times_s).all()
    assert (one.times_s[1:] >= one.times_s[:-1]).all()
    assert len(one.times_s) == len(one.adapters) == len(one.tenants) == 200
    assert one.adapters.min() >= 0 and one.adapters.max() < 30 == len(one.sizes)


def test_the_clairvoyant_gives_up_what_is_used_again_the_latest() -> None:
    uses = {"soon": 1.0, "later": 5.0, "late": 9.0}
    tier = FarthestTier(2, uses.__getitem__)
    assert tier.put("soon", 1, 1) and tier.put("late", 1, 1)
    assert tier.put("later", 1, 1) and tier.digests() == {"soon", "later"}
    assert not tier.put("late", 1, 1) and tier.digests() == {"soon", "later"}
