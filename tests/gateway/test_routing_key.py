"""Whom a request is for, from the client to Admit, and which version answered, on the way back."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from chorale import AsyncClient
from chorale.v1 import adapter_registry_pb2 as pb
from tests.helpers.fake_fleet import FakeFleet


async def post(http: httpx.AsyncClient, path: str = "/v1/completions", **fields: Any) -> Any:
    headers = fields.pop("headers", {})
    body = {"model": "prod", "prompt": "x", "max_tokens": 2, **fields}
    answer = await http.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def test_over_grpc(client: AsyncClient, fleet: FakeFleet) -> None:
    await client.complete("x", model="prod", max_tokens=1, routing_key="ada")
    assert fleet.admits[-1].routing_key == "ada"
    assert fleet.planes[0].requests[-1].routing_key == "", "it is no data plane's business"
    done = await client.complete("x", model="prod", max_tokens=1)
    assert fleet.admits[-1].routing_key == done.accepted.request_id != ""
    await client.complete("x", model="prod", max_tokens=1, request_id="mine")
    assert fleet.admits[-1].routing_key == "mine"


async def test_the_user_of_openai(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    await post(http, user="ada")
    assert fleet.admits[-1].routing_key == "ada"
    await post(http, user="ada", headers={"x-chorale-routing-key": "talk-7"})
    assert fleet.admits[-1].routing_key == "talk-7"
    for field in ("prompt_cache_key", "safety_identifier"):
        await post(http, **{field: field})
        assert fleet.admits[-1].routing_key == field
    long = "a" * 5000
    await post(http, user=long)
    assert fleet.admits[-1].routing_key == hashlib.sha256(long.encode()).hexdigest()


async def test_choices_of_one_answer_have_one_version(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    first = await post(http, n=3, prompt=["x", "y"])
    assert len(fleet.admits) == 6
    assert {admit.routing_key for admit in fleet.admits} == {first.json()["id"]}


async def test_which_version_answered(http: httpx.AsyncClient) -> None:
    whole = await post(http)
    assert whole.headers["x-chorale-model"] == whole.json()["system_fingerprint"] == "pirate@1"
    assert whole.json()["model"] == "prod"
    streamed = await post(http, stream=True)
    assert streamed.headers["x-chorale-model"] == "pirate@1"
    assert streamed.text.count('"system_fingerprint":"pirate@1"') == streamed.text.count("data: {")
    base = await post(http, model="base")
    assert base.headers["x-chorale-model"] == "base"
    assert base.json()["system_fingerprint"] is None
    unnamed = await post(http, model=None)
    assert unnamed.json()["model"] == "base"
    lorax = await http.post("/generate", json={"inputs": "x", "parameters": {"adapter_id": "prod"}})
    assert lorax.headers["x-chorale-model"] == "pirate@1"


@pytest.fixture
def canary(fleet: FakeFleet) -> pb.Alias:
    """`prod` of two adapters, as both tell it."""
    fleet.add_adapter("poet")
    alias = pb.Alias(
        name="prod",
        adapter="pirate",
        version=1,
        targets=[
            pb.AliasTarget(adapter="poet", weight=5),
            pb.AliasTarget(adapter="pirate", version=1, weight=95),
        ],
    )
    for name in ("poet", "pirate"):
        del fleet.adapters[name].aliases[:]
        fleet.adapters[name].aliases.append(alias)
    return alias


async def test_models_tell_targets_once(http: httpx.AsyncClient, canary: pb.Alias) -> None:
    listed = (await http.get("/v1/models")).json()["data"]
    (shown,) = [model for model in listed if model["id"] == "prod"]
    assert shown["root"] == "file:///adapters/pirate/1"
    assert shown["targets"] == [
        {"adapter": "poet", "version": None, "weight": 5},
        {"adapter": "pirate", "version": 1, "weight": 95},
    ]
    assert all("targets" not in model for model in listed if model["id"] != "prod")
    assert (await http.get("/v1/models/prod")).json() == shown
