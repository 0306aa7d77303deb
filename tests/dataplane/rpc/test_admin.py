from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from chorale.aio import AsyncClient
from chorale.bearer import check_bearer
from chorale.errors import InvalidArgumentError, UnauthenticatedError, UnavailableError
from chorale.server import start_server
from chorale.v1 import admin_pb2, admin_pb2_grpc
from dataplane.channel import Sampling
from dataplane.load_reports import LoadUnderWay, WaitingPin
from dataplane.rpc.admin import SERVICE_NAME, AdminService, runs_of
from dataplane.rpc.engine_client import EngineClient
from tests.dataplane.rpc.conftest import StartEngine
from tests.helpers.fake_control_plane import eventually
from tests.helpers.fake_engine import FakeScript

TOKEN = "the-fleet-token"
_SAMPLING = Sampling(max_tokens=4)
FREE = admin_pb2.PAGE_OWNER_KIND_FREE
ADAPTER = admin_pb2.PAGE_OWNER_KIND_ADAPTER
SEQUENCE = admin_pb2.PAGE_OWNER_KIND_SEQUENCE
PREFIX = admin_pb2.PAGE_OWNER_KIND_PREFIX
UNKNOWN = admin_pb2.PAGE_OWNER_KIND_UNSPECIFIED


@contextlib.asynccontextmanager
async def serving(engine: EngineClient, token: str = TOKEN) -> AsyncIterator[AsyncClient]:
    service = AdminService(
        engine=lambda: engine, data_plane_id="dp-1", page_bytes=4096, fleet_token=token
    )
    server = await start_server(
        host="127.0.0.1",
        port=0,
        services=[
            (
                SERVICE_NAME,
                lambda to: admin_pb2_grpc.add_DataPlaneAdminServiceServicer_to_server(service, to),
            )
        ],
        error_table={},
    )
    try:
        async with AsyncClient(server.address, timeout=10) as client:
            yield client
    finally:
        await server.stop(0)


async def test_the_last_loads(start_engine: StartEngine) -> None:
    load = {"digest": "d" * 64, "tier": "disk", "size_bytes": 7}
    load |= {"read_s": 0.5, "parse_s": 0.25, "build_s": 0.125}
    async with start_engine(FakeScript(loads=[load])) as engine:
        await engine.wait_ready()
        async with serving(engine) as client:
            answer = await client.adapter_loads(TOKEN)
            with pytest.raises(UnauthenticatedError):
                await client.adapter_loads("wrong")
    assert answer.data_plane_id == "dp-1"
    assert list(answer.loads) == [admin_pb2.AdapterLoad(**load)]


async def test_where_adapters_are_and_how_far(start_engine: StartEngine) -> None:
    a, b, c, d = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
    parts = {"read_s": 0.5, "parse_s": 0.25, "build_s": 0.125}
    load = {"tier": "source", "size_bytes": 7, **parts, "queue_s": 1.0, "copy_s": 2.0}
    load |= {"age_s": 3.0, "origin": "hf", "reason": "R", "message": "m"}
    progress = {"origin": "hf", "state": "fetching", "received_bytes": 5, "total_bytes": 9}
    progress |= {"bytes_per_s": 1.5, "waited_s": 2.5}
    stats = {
        **dict.fromkeys(("num_running", "num_waiting", "num_used_pages"), 0),
        **dict.fromkeys(("num_pages", "num_available_pages", "num_generated_tokens"), 0),
        "pool_digests": [a],
        "host_digests": [b],
        "disk_digests": [c],
        "loading": [LoadUnderWay(digest=each, **progress) for each in (c, d)],
        "waiting_pins": [WaitingPin(digest=b, tier="pool", reason="PIN_POOL_FULL")],
    }
    script = FakeScript(loads=[{"digest": each, **load} for each in (a, d)], stats=stats)
    async with start_engine(script) as engine:
        await engine.wait_ready()
        await eventually(lambda: engine.stats is not None)
        async with serving(engine) as client:
            every = await client.adapter_loads(TOKEN)
            some = await client.adapter_loads(TOKEN, [b, a, c, "e"])
            with pytest.raises(InvalidArgumentError) as raised:
                await client.adapter_loads(TOKEN, [a] * 1001)
    assert raised.value.reason == "TOO_MANY_DIGESTS"
    assert list(every.loads) == [admin_pb2.AdapterLoad(digest=each, **load) for each in (a, d)]
    assert [each.digest for each in every.loading] == [c, d] and not every.places
    assert [each.digest for each in some.loads] == [a]
    assert list(some.loading) == [admin_pb2.AdapterLoading(digest=c, **progress)]
    assert list(some.places) == [
        admin_pb2.AdapterPlace(digest=b, in_host=True, pin_waits_for="PIN_POOL_FULL"),
        admin_pb2.AdapterPlace(digest=a, in_pool=True),
        admin_pb2.AdapterPlace(digest=c, on_disk=True),
        admin_pb2.AdapterPlace(digest="e"),
    ]


async def test_the_map_of_the_pool(start_engine: StartEngine) -> None:
    owners = ["sequence:7", "sequence:7", "", "", "", "prefix:ab:cd", "adapter:d", "adapter:d"]
    script = FakeScript(owners=owners, problem="page 3 is odd")
    async with start_engine(script) as engine:
        await engine.wait_ready()
        async with serving(engine) as client:
            answer = await client.pool(TOKEN)
    assert (answer.data_plane_id, answer.num_pages, answer.page_bytes) == ("dp-1", 8, 4096)
    assert (answer.num_used_pages, answer.problem) == (1, "page 3 is odd")
    runs = [(run.owner_kind, run.owner_id, run.first_page, run.num_pages) for run in answer.runs]
    assert runs == [
        (SEQUENCE, "7", 0, 2),
        (FREE, "", 2, 3),
        (PREFIX, "ab:cd", 5, 1),
        (ADAPTER, "d", 6, 2),
    ]


def test_runs_cover_every_page_once_and_keep_what_is_unknown() -> None:
    assert list(runs_of([])) == []
    owners = ["", "a:1", "a:1", "odd", "adapter:x", "adapter:y", ""]
    runs = list(runs_of(owners))
    assert [run.first_page for run in runs] == [0, 1, 3, 4, 5, 6]
    assert sum(run.num_pages for run in runs) == len(owners)
    assert [(run.owner_kind, run.owner_id) for run in runs[1:3]] == [
        (UNKNOWN, "a:1"),
        (UNKNOWN, "odd"),
    ]


@pytest.mark.parametrize(
    ("given", "reason"), [("", "FLEET_TOKEN_MISSING"), ("wrong", "FLEET_TOKEN_WRONG")]
)
async def test_nobody_looks_in_without_the_token(
    start_engine: StartEngine, given: str, reason: str
) -> None:
    async with start_engine() as engine:
        await engine.wait_ready()
        async with serving(engine) as client:
            with pytest.raises(UnauthenticatedError) as raised:
                await client.pool(given)
    assert raised.value.reason == reason and TOKEN not in raised.value.message


async def test_without_a_token_of_its_own_it_lets_nobody_in(start_engine: StartEngine) -> None:
    async with start_engine() as engine:
        await engine.wait_ready()
        async with serving(engine, token="") as client:
            with pytest.raises(UnauthenticatedError):
                await client.pool("x")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (("authorization", "Bearer"),),
        (("authorization", "Bearer  "),),
        (("authorization", f"Basic {TOKEN}"),),
        (("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")),
        (("authorization", b"\xff\xfe"),),
    ],
)
def test_malformed_tokens(metadata: Any) -> None:
    with pytest.raises(UnauthenticatedError) as raised:
        check_bearer(metadata, TOKEN)
    assert raised.value.reason == "FLEET_TOKEN_MISSING"
    check_bearer((("authorization", f"bearer {TOKEN}"),), TOKEN)


async def test_a_lost_engine_has_no_map(start_engine: StartEngine) -> None:
    async with start_engine(FakeScript(crash_after=0)) as engine:
        await engine.wait_ready()
        async with serving(engine) as client:
            assert (await client.pool(TOKEN)).num_pages == 2
            engine.submit(prompt=[1], sampling=_SAMPLING, arrival_s=0.0)
            await eventually(lambda: engine.is_lost)
            with pytest.raises(UnavailableError) as raised:
                await client.pool(TOKEN)
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    assert raised.value.reason == "ENGINE_LOST" and raised.value.retry_after_s
