"""Tokens of a text, over gRPC, LoRAX's HTTP API and the clients."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import httpx
import pytest

from chorale import (
    AsyncClient,
    ChoraleError,
    Client,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    TokenSpan,
    UnavailableError,
)
from chorale.token_spans import MAX_TEXT_CHARACTERS
from chorale.v1 import fleet_pb2
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_fleet, running_gateway
from tests.helpers.waiting import eventually

SHOWN = [TokenSpan(0, "<s>", 0, 0), TokenSpan(1, "größe", 0, 5), TokenSpan(2, "👩", 6, 7)]


def texts(fleet: FakeFleet) -> list[pb.TokenizeRequest]:
    return [request for plane in fleet.planes for request in plane.texts]


async def test_clients(gateway: RunningGateway, client: AsyncClient, fleet: FakeFleet) -> None:
    assert await client.tokenize("größe 👩") == SHOWN
    bare = await client.tokenize("größe 👩", model="pirate", add_special_tokens=False)
    assert [token.piece for token in bare] == ["größe", "👩"]

    def blocking() -> list[TokenSpan]:
        with Client(gateway.address) as opened:
            return opened.tokenize("größe 👩")

    assert await asyncio.to_thread(blocking) == SHOWN
    assert fleet.admits == [], "no place was taken"
    with pytest.raises(InvalidArgumentError):
        await client.tokenize(None)  # pyright: ignore[reportArgumentType]


async def test_lorax(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    body: dict[str, Any] = {"inputs": "größe 👩"}
    response = await http.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json() == [
        {"id": 0, "text": "<s>", "start": 0, "stop": 0},
        {"id": 1, "text": "größe", "start": 0, "stop": 5},
        {"id": 2, "text": "👩", "start": 6, "stop": 7},
    ]
    for flag, number in ((None, 3), (True, 3), (False, 2)):
        shown = await http.post("/tokenize", json=body | {"add_special_tokens": flag})
        assert len(shown.json()) == number
    assert (await http.post("/tokenize", content=json.dumps(body))).status_code == 200
    assert (await http.post("/tokenize", json={"inputs": ""})).json()[0]["text"] == "<s>"
    assert fleet.admits == []


async def test_a_long_text_whole(http: httpx.AsyncClient) -> None:
    inputs = "ab " * 50_000
    tokens = (await http.post("/tokenize", json={"inputs": inputs})).json()
    assert [inputs[token["start"] : token["stop"]] for token in tokens[1:]] == ["ab"] * 50_000


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({}, 400, "inputs is missing"),
        ({"inputs": ["a"]}, 400, "inputs"),
        ({"inputs": "a", "add_special_tokens": 1}, 400, "add_special_tokens"),
        ({"inputs": "a", "parameters": {}}, 400, "parameters"),
        ({"inputs": "a" * (MAX_TEXT_CHARACTERS + 1)}, 400, str(MAX_TEXT_CHARACTERS)),
        ({"inputs": "a", "adapter_id": "nobody"}, 404, "nobody"),
        ({"inputs": "a", "adapter_id": "a b"}, 404, "a b"),
    ],
)
async def test_failures_are_lorax_s(
    http: httpx.AsyncClient, fleet: FakeFleet, sent: dict[str, Any], status: int, said: str
) -> None:
    response = await http.post("/tokenize", json=sent)
    assert response.status_code == status
    error = response.json()
    assert set(error) == {"error", "error_type"} and said in error["error"]
    assert len(error["error"]) < 500 and error["error_type"] == "validation"
    assert texts(fleet) == []


@pytest.mark.parametrize("model", ["", "base", "pirate", "pirate@1", "prod"])
async def test_every_name_of_a_model(client: AsyncClient, model: str) -> None:
    assert len(await client.tokenize("a b", model=model)) == 3


def listed(fleet: FakeFleet, *bases: str) -> list[fleet_pb2.DataPlane]:
    return [
        fleet_pb2.DataPlane(
            data_plane_id=plane.data_plane_id, endpoint=plane.endpoint, base_model=base
        )
        for plane, base in zip(fleet.planes, bases, strict=False)
    ]


async def test_the_right_base_model_is_asked(client: AsyncClient, fleet: FakeFleet) -> None:
    fleet.listed = listed(fleet, "other", "base")
    for model in ("pirate", "base", "prod"):
        await client.tokenize("x", model=model)
    assert (len(fleet.planes[0].texts), len(fleet.planes[1].texts)) == (0, 3)
    await client.tokenize("x", model="other")
    assert len(fleet.planes[0].texts) == 1
    with pytest.raises(InvalidArgumentError) as several:
        await client.tokenize("x")
    assert several.value.reason == "MODEL_REQUIRED" and "base, other" in several.value.message


async def test_nobody_to_ask(client: AsyncClient, fleet: FakeFleet) -> None:
    fleet.listed = listed(fleet, "other")
    for model in ("base", "pirate"):  # known, but served by nobody
        with pytest.raises(UnavailableError) as seen:
            await client.tokenize("x", model=model)
        assert seen.value.reason == "NO_DATA_PLANE" and seen.value.retry_after_s
    with pytest.raises(NotFoundError) as unknown:
        await client.tokenize("x", model="nobody")
    assert unknown.value.reason == "MODEL_NOT_FOUND"


async def test_the_list_is_asked_for_once_while_it_is_fresh(
    client: AsyncClient, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.gateway.data_planes._FRESH_S", 3600.0)
    await asyncio.gather(*(client.tokenize("x") for _ in range(20)))
    assert fleet.num_listings == 1
    assert fleet.num_residencies_listed == 0, "there may be more than an answer holds"
    assert all(plane.texts for plane in fleet.planes), "all data planes share the work"


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("SHUTTING_DOWN", "going"),
        ResourceExhaustedError("TOO_MANY_TEXTS", "full", retry_after_s=1.0),
    ],
)
async def test_one_that_cannot_leaves_it_to_another(
    client: AsyncClient, fleet: FakeFleet, error: ChoraleError
) -> None:
    fleet.planes[0].error = error
    for _ in range(8):
        assert len(await client.tokenize("a b")) == 3
    fleet.planes[1].error = error
    with pytest.raises(type(error)) as seen:
        await client.tokenize("a b")
    assert seen.value.reason == error.reason


async def test_one_that_is_gone_leaves_it_to_another(client: AsyncClient, fleet: FakeFleet) -> None:
    await client.tokenize("x")
    await fleet.planes[0].kill()
    for _ in range(8):
        assert len(await client.tokenize("a b")) == 3
    await fleet.planes[1].kill()
    with pytest.raises(UnavailableError) as seen:
        await client.tokenize("x")
    assert seen.value.reason == "DATA_PLANE_UNREACHABLE" and "127.0.0.1" not in seen.value.message


async def test_a_refusal_is_not_tried_elsewhere(client: AsyncClient, fleet: FakeFleet) -> None:
    for plane in fleet.planes:
        plane.error = InvalidArgumentError("TEXT_TOO_LONG", "too long", metadata={"field": "text"})
    with pytest.raises(InvalidArgumentError) as seen:
        await client.tokenize("x")
    assert seen.value.reason == "TEXT_TOO_LONG" and len(texts(fleet)) == 1


async def test_a_fault_of_a_data_plane_tells_nothing(client: AsyncClient, fleet: FakeFleet) -> None:
    for plane in fleet.planes:
        plane.error = RuntimeError("secret")
    with pytest.raises(InternalError) as seen:
        await client.tokenize("x")
    assert "secret" not in seen.value.message


async def test_data_planes_of_an_older_version() -> None:
    async with (
        running_fleet(num_planes=1) as fleet,
        running_gateway(fleet) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        assert fleet.server is not None  # which has no InferenceService
        fleet.listed = listed(fleet, "base")
        fleet.listed[0].endpoint = fleet.server.address
        with pytest.raises(UnavailableError) as seen:
            await client.tokenize("x")
        assert seen.value.reason == "TOKENIZE_UNKNOWN"


async def test_bounds_and_deadlines(fleet: FakeFleet) -> None:
    for plane in fleet.planes:
        plane.tokenize_delay_s = 600.0
    async with (
        running_gateway(fleet, max_concurrent_requests=1, http_timeout_s=0.3) as gateway,
        AsyncClient(gateway.address) as client,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        late = await http.post("/tokenize", json={"inputs": "x"})
        assert (late.status_code, late.json()["error_type"]) == (504, "generation")
        before = len(texts(fleet))
        first = asyncio.create_task(client.tokenize("x"))
        await eventually(lambda: len(texts(fleet)) > before)
        full = await http.post("/tokenize", json={"inputs": "x"})
        assert (full.status_code, full.json()["error_type"]) == (429, "overloaded")
        assert full.headers["retry-after"] == "1"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        for plane in fleet.planes:
            plane.tokenize_delay_s = 0.0

        async def is_taken() -> bool:
            return (await http.post("/tokenize", json={"inputs": "x"})).status_code != 429

        await eventually(is_taken, "who went away holds no place")


async def test_only_what_a_data_plane_may_see_goes_there(
    gateway: RunningGateway, http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    sent = {"authorization": "Bearer s", "x-chorale-source-token": "t", "traceparent": "00-1"}
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        stub: Any = InferenceServiceStub(channel)
        await stub.Tokenize(pb.TokenizeRequest(text="x"), metadata=tuple(sent.items()))
    await http.post("/tokenize", json={"inputs": "x"}, headers=sent)
    seen = [metadata for plane in fleet.planes for metadata in plane.metadata]
    assert len(seen) == 2
    for metadata in seen:
        assert metadata["traceparent"] == "00-1"
        assert not {"authorization", "x-chorale-source-token"} & set(metadata)
