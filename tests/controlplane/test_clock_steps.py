"""Clocks that are set back or ahead by an hour: Redis', a control plane's, a data plane's."""

from __future__ import annotations

import time
from unittest import mock

import grpc
import pytest
from redis import Redis

from chorale.status import from_rpc_error
from chorale.v1 import admission_pb2, fleet_pb2
from controlplane.admission.plane_rows import decode_rows
from controlplane.prefetch.limits import DemandLimits
from controlplane.store import keys
from controlplane.store.client import Store
from tests.controlplane.tenants.quota import admit, limit, refusal
from tests.helpers.control_plane import ControlPlane, failure, running
from tests.helpers.waiting import eventually

_HOUR_S = 3600
_HOUR_MS = _HOUR_S * 1000
_LEASE_S = 2.0


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url, decode_responses=True)


def _now_ms(redis: Redis) -> int:
    seconds, microseconds = redis.time()
    return seconds * 1000 + microseconds // 1000


def _set_back(redis: Redis, data_plane_id: str) -> None:
    """What an hour back makes of a lease: both its ends are an hour ahead."""
    key = keys.DATA_PLANE + data_plane_id
    redis.hincrby(key, "last_heartbeat_ms", _HOUR_MS)
    redis.pexpire(key, redis.pttl(key) + _HOUR_MS)


async def test_a_lease_outlives_nobody_by_an_hour(redis_url: str, redis: Redis) -> None:
    async with running(redis_url, lease_s=_LEASE_S) as plane:
        await plane.join(incarnation=10**18, max_running=0)
        _set_back(redis, "dp-0")
        assert (await admit(plane)).data_plane_id == "dp-0"  # it may live
        left_ms = redis.pttl(keys.DATA_PLANE + "dp-0")
        assert left_ms <= _LEASE_S * 1000
        assert (
            abs(int(redis.hget(keys.DATA_PLANE + "dp-0", "last_heartbeat_ms")) - _now_ms(redis))
            < _HOUR_MS / 2
        )
        await eventually(lambda: not redis.exists(keys.DATA_PLANE + "dp-0"))
        assert (await failure(admit(plane))).reason == "NO_DATA_PLANE"


async def test_whoever_starts_again_after_it_need_not_wait(redis_url: str, redis: Redis) -> None:
    """Incarnations are clocks, too."""
    async with running(redis_url, lease_s=_LEASE_S, prefetch=False) as plane:
        await plane.join(incarnation=2 * 10**18)
        _set_back(redis, "dp-0")

        async def joined() -> bool:
            try:
                await plane.join(incarnation=10**18)
            except grpc.aio.AioRpcError as error:
                assert from_rpc_error(error).reason == "STALE_INCARNATION"
                return False
            return True

        await eventually(joined)


async def test_a_living_one_stays(redis_url: str, redis: Redis) -> None:
    async with running(redis_url) as plane:
        await plane.join(max_running=4)
        _set_back(redis, "dp-0")
        await plane.beat(max_running=4)
        listed = await plane.fleet.ListDataPlanes(fleet_pb2.ListDataPlanesRequest())
        assert [each.data_plane_id for each in listed.data_planes] == ["dp-0"]
        assert redis.pttl(keys.DATA_PLANE + "dp-0") > 60_000


async def test_a_tenant_makes_up_for_what_it_owes(plane: ControlPlane, redis: Redis) -> None:
    await plane.join(max_running=4)
    await limit(plane, "acme", requests_per_minute=600, request_burst=1)
    await admit(plane)
    key = keys.TENANT_BUCKET + "acme"
    at, requests, tokens = str(redis.get(key)).split()
    redis.set(
        key, f"{int(at) + _HOUR_MS * 1000} {requests} {tokens}", keepttl=False, px=2 * _HOUR_MS
    )
    assert (await refusal(plane)).metadata["limit"] == "requests_per_minute"

    async def admitted() -> bool:
        try:
            await admit(plane)
        except grpc.aio.AioRpcError as error:
            assert from_rpc_error(error).reason == "TENANT_QUOTA"
            return False
        return True

    await eventually(admitted)


async def test_a_generation_that_ended_unheard_counts_no_hour(
    plane: ControlPlane, redis: Redis
) -> None:
    await plane.join(max_running=4)
    await limit(plane, "acme", max_running=1)
    await admit(plane)
    key = keys.TENANT_RUNNING + "acme"
    (request,) = redis.zrange(key, 0, -1)
    redis.zincrby(key, _HOUR_MS, request)
    await refusal(plane)
    left_ms = redis.zscore(key, request) - _now_ms(redis)
    assert 0 < left_ms < 5 * 60_000  # as if it had been let in now: twice the lease of this test
    redis.zincrby(key, -left_ms, request)
    await admit(plane)


async def test_the_one_that_predicts_is_replaced(redis_url: str, redis: Redis) -> None:
    store = Store(redis_url)
    try:
        asked = ("predict", "me", 4000, DemandLimits().json)
        redis.set(keys.PREDICTOR, "other", px=3000)
        assert (await store.run(*asked))[0] == "OTHER"
        redis.set(keys.PREDICTOR, "other", px=4000 + _HOUR_MS)
        assert (await store.run(*asked))[0] == "OK"
    finally:
        await store.close()


async def test_what_was_sent_in_an_hour_is_not_known_to_be_young(
    redis_url: str, redis: Redis
) -> None:
    store = Store(redis_url)
    async with running(redis_url) as plane:
        await plane.join()
        sent = f"{keys.SENT_PREFIXES}dp-0:{1:020d}"

        async def found() -> list[int]:
            reply = await store.run("admit", "", "k", "t", 1, "", "", "id", 1, 1, "mark")
            return decode_rows(reply[7])[0].sent

        redis.zadd(sent, {"mark": _now_ms(redis)})
        assert (await found())[0] == 1
        redis.zadd(sent, {"mark": _now_ms(redis) + _HOUR_MS})
        assert await found() == []
    await store.close()


@pytest.mark.parametrize("off_s", [-_HOUR_S, _HOUR_S])
async def test_tickets_go_by_the_clock_of_redis(
    plane: ControlPlane, redis: Redis, off_s: int
) -> None:
    own = time.time
    with mock.patch("time.time", lambda: own() + off_s):
        joined = await plane.join()
        beaten = await plane.beat()
        place = await plane.admission.Admit(admission_pb2.AdmitRequest())
    now_s = _now_ms(redis) / 1000
    for told in (joined.now, beaten.now):
        assert abs(told.ToNanoseconds() / 1e9 - now_s) < _HOUR_S / 2
    assert 0 < place.expires_at.ToNanoseconds() / 1e9 - now_s < _HOUR_S / 2
