"""Directives to data planes, and pins that outlive them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chorale.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import fleet_pb2 as pb
from controlplane.fleet import directives
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane, failure
from tests.helpers.redis import send

PREFETCH, PIN, UNPIN, UNLOAD = (
    pb.ADAPTER_ACTION_PREFETCH,
    pb.ADAPTER_ACTION_PIN,
    pb.ADAPTER_ACTION_UNPIN,
    pb.ADAPTER_ACTION_UNLOAD,
)
POOL = pb.ADAPTER_TIER_POOL


async def register(plane: ControlPlane, roots: Path, name: str = "a", seed: int = 1) -> str:
    path = make_adapter_dir(roots / f"{name}{seed}", seed=seed)
    response = await plane.registry.RegisterAdapter(
        registry_pb.RegisterAdapterRequest(name=name, source=str(path))
    )
    return response.version.digest


async def direct(plane: ControlPlane, **fields: Any) -> list[str]:
    request = pb.DirectAdapterRequest(**{"name": "a", **fields})
    response = await plane.fleet.DirectAdapter(request, metadata=AUTHORIZATION)
    return list(response.data_plane_ids)


async def beat(
    plane: ControlPlane, data_plane_id: str = "dp-0", received: int = 0, incarnation: int = 1
) -> list[pb.Directive]:
    response = await plane.fleet.Heartbeat(
        pb.HeartbeatRequest(
            data_plane_id=data_plane_id,
            incarnation=incarnation,
            load=pb.Load(),
            received_directives=received,
        ),
        metadata=AUTHORIZATION,
    )
    return list(response.directives)


async def test_a_directive_comes_until_it_is_received(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    digest = await register(plane, tmp_path)
    assert await direct(plane, action=PREFETCH, tier=POOL) == ["dp-0"]
    assert await direct(plane, action=UNLOAD, within={"seconds": 7}) == ["dp-0"]
    first = await beat(plane)
    assert first == await beat(plane)
    prefetch, unload = first
    assert (prefetch.sequence, prefetch.action, prefetch.tier) == (1, PREFETCH, POOL)
    assert (prefetch.digest, prefetch.name) == (digest, "a@1")
    assert prefetch.source.endswith("a1")
    assert (unload.sequence, unload.action) == (2, UNLOAD)
    assert unload.within.ToTimedelta().total_seconds() == 7
    assert await beat(plane, received=1) == [unload]
    assert await beat(plane, received=2) == []
    await direct(plane, action=UNLOAD)
    (third,) = await beat(plane, received=2)
    assert third.sequence == 3 and third.within.ToTimedelta().total_seconds() == 30


async def test_only_data_planes_of_its_base_model_are_told(
    plane: ControlPlane, tmp_path: Path
) -> None:
    other = TINY_BASE.__class__(
        "other/model", TINY_BASE.num_layers, TINY_BASE.layer_modules, TINY_BASE.outer_modules
    )
    await plane.join("dp-0")
    await plane.join("dp-1")
    await plane.join("dp-2", base=other)
    await register(plane, tmp_path)
    assert await direct(plane, action=PREFETCH) == ["dp-0", "dp-1"]
    assert await direct(plane, action=PREFETCH, data_plane_id="dp-1") == ["dp-1"]
    assert [len(await beat(plane, f"dp-{n}")) for n in range(3)] == [1, 2, 0]
    for unknown in ("dp-2", "dp-9"):
        error = await failure(direct(plane, action=PREFETCH, data_plane_id=unknown))
        assert isinstance(error, NotFoundError) and error.reason == "DATA_PLANE_NOT_FOUND"


async def test_pins_are_told_to_who_joins_later(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    digest = await register(plane, tmp_path)
    await direct(plane, action=PIN, tier=POOL)
    assert [each.action for each in await beat(plane)] == [PIN]
    await plane.join("dp-1")
    (late,) = await beat(plane, "dp-1")
    assert (late.action, late.tier, late.digest, late.sequence) == (PIN, POOL, digest, 1)
    await plane.join(incarnation=2)
    assert [each.action for each in await beat(plane, incarnation=2)] == [PIN]
    await direct(plane, action=UNPIN)
    assert [each.action for each in await beat(plane, "dp-1", received=1)] == [UNPIN]
    await plane.join("dp-2")
    assert await beat(plane, "dp-2") == []


@pytest.mark.parametrize("how", ["unload", "remove", "remove version"])
async def test_a_pin_ends_with_unload_and_with_removal(
    plane: ControlPlane, tmp_path: Path, how: str
) -> None:
    await plane.join()
    digest = await register(plane, tmp_path)
    await direct(plane, action=PIN)
    if how == "unload":
        await direct(plane, action=UNLOAD)
    elif how == "remove":
        await plane.registry.RemoveAdapter(registry_pb.RemoveAdapterRequest(name="a"))
    else:
        await register(plane, tmp_path, seed=2)
        await plane.registry.RemoveAdapter(registry_pb.RemoveAdapterRequest(name="a", version=1))
    last = (await beat(plane, received=1))[-1]
    assert last.action == (UNLOAD if how == "unload" else UNPIN), "who has it lets go of it"
    assert last.digest == digest
    await plane.join("dp-1")
    assert await beat(plane, "dp-1") == []


async def test_removal_unpins_where_its_base_model_is_served(
    plane: ControlPlane, tmp_path: Path
) -> None:
    other = TINY_BASE.__class__(
        "other/model", TINY_BASE.num_layers, TINY_BASE.layer_modules, TINY_BASE.outer_modules
    )
    await plane.join("dp-0")
    await plane.join("dp-1")
    await plane.join("dp-2", base=other)
    await register(plane, tmp_path)
    await register(plane, tmp_path, name="mere", seed=2)
    await direct(plane, action=PIN)
    for name in ("a", "mere"):
        await plane.registry.RemoveAdapter(registry_pb.RemoveAdapterRequest(name=name))
    for name in ("dp-0", "dp-1"):
        assert [each.action for each in await beat(plane, name)] == [PIN, UNPIN]
    assert await beat(plane, "dp-2") == []


async def test_unload_on_one_data_plane_leaves_the_pin_of_the_others(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await plane.join("dp-0")
    await plane.join("dp-1")
    await register(plane, tmp_path)
    await direct(plane, action=PIN)
    assert await direct(plane, action=UNLOAD, data_plane_id="dp-0") == ["dp-0"]
    assert [each.action for each in await beat(plane)] == [PIN, UNLOAD]
    assert [each.action for each in await beat(plane, "dp-1")] == [PIN]
    await plane.join("dp-1", incarnation=2)
    assert [each.action for each in await beat(plane, "dp-1", incarnation=2)] == [PIN]


async def test_a_pin_by_another_name_outlives_a_removal(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await plane.join()
    digest = await register(plane, tmp_path)
    assert await register(plane, tmp_path, name="b") == digest
    await direct(plane, action=PIN)
    await plane.registry.RemoveAdapter(registry_pb.RemoveAdapterRequest(name="b"))
    assert [each.action for each in await beat(plane)] == [PIN]
    await plane.join("dp-1")
    assert [each.action for each in await beat(plane, "dp-1")] == [PIN]


async def test_refusals(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    await register(plane, tmp_path)
    for fields, reason in (
        ({}, "ACTION_INVALID"),
        ({"action": 77}, "ACTION_INVALID"),
        ({"action": PIN, "tier": 9}, "TIER_INVALID"),
        ({"action": PIN, "data_plane_id": "dp-0"}, "PIN_IS_FOR_ALL"),
        ({"action": UNLOAD, "within": {"seconds": 3601}}, "WITHIN_INVALID"),
        ({"action": UNLOAD, "within": {"seconds": -1}}, "WITHIN_INVALID"),
        ({"action": PREFETCH, "data_plane_id": "a b"}, "DATA_PLANE_ID_INVALID"),
    ):
        error = await failure(direct(plane, **fields))
        assert isinstance(error, InvalidArgumentError) and error.reason == reason, fields
    assert isinstance(await failure(direct(plane, name="nobody", action=PIN)), NotFoundError)
    request = pb.DirectAdapterRequest(name="a", action=PIN)
    assert isinstance(await failure(plane.fleet.DirectAdapter(request)), UnauthenticatedError)
    assert await beat(plane) == []


async def test_unreceived_directives_are_bounded(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directives, "_MAX_WAITING", 3)
    await plane.join("dp-0")
    await plane.join("dp-1")
    await register(plane, tmp_path)
    for _ in range(3):
        await direct(plane, action=PREFETCH, data_plane_id="dp-0")
    error = await failure(direct(plane, action=PIN))
    assert isinstance(error, ResourceExhaustedError) and error.retry_after_s
    assert await beat(plane, "dp-1") == [], "all are told or none"
    assert len(await beat(plane)) == 3
    await beat(plane, received=3)
    assert await direct(plane, action=PIN) == ["dp-0", "dp-1"]


async def test_prefetch_counters_are_listed(plane: ControlPlane) -> None:
    await plane.join()
    prefetches = pb.Prefetches(
        num_hits=1,
        num_late=2,
        late={"seconds": 1, "nanos": 500_000_000},
        wasted_bytes=2**40,
        num_failed=4,
        num_refused=5,
    )
    await plane.fleet.Heartbeat(
        pb.HeartbeatRequest(
            data_plane_id="dp-0", incarnation=1, load=pb.Load(prefetches=prefetches)
        ),
        metadata=AUTHORIZATION,
    )
    response = await plane.fleet.ListDataPlanes(pb.ListDataPlanesRequest())
    assert response.data_planes[0].load.prefetches == prefetches


async def test_a_private_adapter_is_prefetched_only_where_it_is(
    plane: ControlPlane, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    await plane.join("dp-0")
    await plane.join("dp-1")
    digest = await register(plane, tmp_path)
    await register(plane, tmp_path, name="open", seed=2)
    # What a registration with a token leaves in Redis.
    assert send(redis_server, "HSET {chorale}:adapter:a private:1 1") == b":0\r\n"
    for action in (PREFETCH, PIN):
        error = await failure(direct(plane, action=action))
        assert isinstance(error, FailedPreconditionError)
        assert error.reason == "PREFETCH_NEEDS_TOKEN"
        assert error.metadata["data_plane_id"] in ("dp-0", "dp-1")
    assert await beat(plane) == []
    for tier in ("disk", "host", "pool"):
        residency = pb.Residency(**{f"{tier}_digests": [digest]})
        await plane.beat("dp-0", residency=residency)
        assert await direct(plane, action=PREFETCH, data_plane_id="dp-0") == ["dp-0"], tier
    assert isinstance(await failure(direct(plane, action=PIN)), FailedPreconditionError)
    await plane.join("dp-2")
    assert await beat(plane, "dp-2") == [], "a refused pin is not kept"
    assert len(await direct(plane, action=UNLOAD)) == 3, "which needs no source"
    assert len(await direct(plane, name="open", action=PREFETCH)) == 3
