"""Predictions of whole control planes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chorale.errors import InvalidArgumentError
from chorale.v1 import admission_pb2 as admission_pb
from chorale.v1 import fleet_pb2 as pb
from controlplane.store import keys
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane, failure, running
from tests.helpers.redis import send
from tests.helpers.waiting import eventually

LOAD = pb.Load(
    max_running=8,
    tiers=[pb.TierCounters(tier=tier, max_bytes=1 << 20) for tier in ("pool", "host")],
)


async def admit(plane: ControlPlane, *models: str, tenant: str, **fields: Any) -> None:
    for model in models:
        request = admission_pb.AdmitRequest(model=model, tenant=tenant, **fields)
        await plane.admission.Admit(request)
        await asyncio.sleep(0.05)


async def beat(
    plane: ControlPlane, received: int = 0, *, incarnation: int = 1
) -> list[pb.Directive]:
    request = pb.HeartbeatRequest(
        data_plane_id="dp-0",
        incarnation=incarnation,
        load=LOAD,
        received_directives=received,
    )
    return list((await plane.fleet.Heartbeat(request, metadata=AUTHORIZATION)).directives)


async def until_told(plane: ControlPlane) -> pb.Directive:
    return (await eventually(lambda: beat(plane)))[0]


async def learn(
    plane: ControlPlane, roots: Path, server: EmbeddedRedis, *, counts: bool = True
) -> str:
    """That b follows a, long ago, with a data plane that has neither; b's digest."""
    send(server, f"SET {keys.PREDICTOR} nobody")  # while they learn
    await plane.join(max_running=8)
    await plane.register("a", make_adapter_dir(roots / "a"))
    made = await plane.register("b", make_adapter_dir(roots / "b", seed=1))
    for tenant in ("1", "2", "3", "4"):
        await admit(plane, "a", "b", tenant=tenant)
    if counts:
        await eventually(lambda: _is_written(server))
    send(server, f"HINCRBY {keys.DEMAND_CLOCK} now 1200000")
    send(server, f"DEL {keys.VISITED} {keys.PREDICTOR}")
    return made.version.digest


def _is_written(server: EmbeddedRedis) -> bool:
    """The last visit of the last tenant: demand is written behind the requests' backs."""
    last = send(server, f"HGET {keys.SESSION_LAST} 4").split()[-1]  # "$-1" when there is none
    return send(server, f"HGET {keys.DEMANDED} {last.decode()}").endswith(b"b@1\r\n")


async def demand(plane: ControlPlane, limit: int = 0) -> pb.ListDemandResponse:
    return await plane.fleet.ListDemand(pb.ListDemandRequest(limit=limit))


async def test_what_one_has_learnt_another_uses(
    redis_url: str, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    async with running(redis_url, adapter_roots=[tmp_path]) as one:
        async with running(redis_url, adapter_roots=[tmp_path]) as other:
            digest = await learn(other, tmp_path, redis_server)
        await asyncio.sleep(1.2)
        assert await beat(one) == []
        await admit(one, "a", tenant="new")
        directive = await until_told(one)
        assert (directive.digest, directive.name) == (digest, "b@1")
        assert directive.action == pb.ADAPTER_ACTION_PREFETCH
        listed = await demand(one)
    (prediction,) = listed.predictions
    assert prediction.kind == pb.PREDICTION_KIND_FOLLOW and prediction.tier == directive.tier
    assert (prediction.digest, prediction.name, prediction.hit) == (digest, "b@1", False)
    assert prediction.size_bytes > 0 and prediction.left.ToSeconds() > 0
    (score,) = (each for each in listed.scores if each.num_made)
    assert score.kind == pb.PREDICTION_KIND_FOLLOW and score.asked_bytes == prediction.size_bytes
    followed = {each.name: [after.name for after in each.followers] for each in listed.adapters}
    assert followed["a@1"] == ["b@1"]


async def test_without_predictions_nothing_is_counted_nor_asked(
    redis_url: str, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    async with running(redis_url, adapter_roots=[tmp_path], prefetch=False) as plane:
        await learn(plane, tmp_path, redis_server, counts=False)
        await admit(plane, "a", tenant="new")
        await asyncio.sleep(1.2)
        assert await beat(plane) == []
        listed = await demand(plane)
    assert not listed.predicting and not listed.adapters


@pytest.mark.parametrize(
    "fields",
    [
        {"excluded_data_plane_ids": ["dp-9"]},
        # Of a single data plane that comes back, nothing is excluded any more.
        {"prompt_size": admission_pb.PromptSize(num_tokens=4, num_generated_tokens=1)},
    ],
)
async def test_a_continued_request_is_no_new_demand(
    plane: ControlPlane, tmp_path: Path, fields: dict[str, Any]
) -> None:
    await plane.join(max_running=8)
    await plane.register("a", make_adapter_dir(tmp_path / "a"))
    await plane.register("b", make_adapter_dir(tmp_path / "b", seed=1))
    await admit(plane, "a", tenant="t", **fields)
    await admit(plane, "b", tenant="t")

    async def counted() -> pb.ListDemandResponse | None:
        listed = await demand(plane)
        return listed if listed.adapters else None

    listed = await eventually(counted)
    assert [each.name for each in listed.adapters] == ["b@1"]
    error = await failure(demand(plane, 1001))
    assert isinstance(error, InvalidArgumentError) and error.reason == "LIMIT_INVALID"


@pytest.mark.parametrize("one_only", [False, True])
async def test_what_an_operator_unloads_is_not_brought_back(
    plane: ControlPlane, tmp_path: Path, redis_server: EmbeddedRedis, one_only: bool
) -> None:
    await learn(plane, tmp_path, redis_server)
    request = pb.DirectAdapterRequest(
        name="b",
        action=pb.ADAPTER_ACTION_UNLOAD,
        data_plane_id="dp-0" if one_only else "",
    )
    await plane.fleet.DirectAdapter(request, metadata=AUTHORIZATION)
    (unload,) = await beat(plane)
    await admit(plane, "a", tenant="new")
    await asyncio.sleep(1.3)
    assert await beat(plane, unload.sequence) == []
    assert not (await demand(plane)).predictions
    await admit(plane, "b", tenant="new")  # whoever asks for it has it brought again
    send(redis_server, f"HINCRBY {keys.DEMAND_CLOCK} now 1200000")
    await admit(plane, "a", tenant="newer")
    directives = await eventually(lambda: beat(plane, unload.sequence))
    assert directives[0].name == "b@1"


async def test_what_is_unloaded_is_left_alone_by_a_data_plane_that_starts_again(
    plane: ControlPlane, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    await learn(plane, tmp_path, redis_server)
    request = pb.DirectAdapterRequest(name="b", action=pb.ADAPTER_ACTION_UNLOAD)
    await plane.fleet.DirectAdapter(request, metadata=AUTHORIZATION)
    await plane.join(incarnation=2)
    await beat(plane, incarnation=2)
    await admit(plane, "a", tenant="new")
    await asyncio.sleep(1.3)
    assert "b@1" not in [each.name for each in await beat(plane, incarnation=2)]
    assert "b@1" not in [each.name for each in (await demand(plane)).predictions]


async def test_what_is_unloaded_leaves_room_for_predictions(
    plane: ControlPlane, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    await learn(plane, tmp_path, redis_server)
    for index in range(512):
        send(redis_server, f"HSET {keys.PREDICTIONS} dp-9:{index} {{}}")
    request = pb.DirectAdapterRequest(name="b", action=pb.ADAPTER_ACTION_UNLOAD)
    await plane.fleet.DirectAdapter(request, metadata=AUTHORIZATION)
    assert send(redis_server, f"HLEN {keys.PREDICTIONS}") == b":512\r\n"


async def test_a_data_plane_that_joins_anew_begins_anew(
    plane: ControlPlane, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    await learn(plane, tmp_path, redis_server)
    await admit(plane, "a", tenant="new")
    await until_told(plane)
    assert (await demand(plane)).predictions
    await plane.join(incarnation=2)
    assert not (await demand(plane)).predictions
