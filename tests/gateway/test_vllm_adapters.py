"""vLLM's endpoints that load and unload adapters."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from chorale.errors import NotFoundError
from controlplane.gateway.options import GatewayOptions
from tests.gateway.http_errors import error_of
from tests.helpers.fake_fleet import FakeFleet, running_gateway
from tests.helpers.waiting import eventually

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
POET = {"lora_name": "poet", "lora_path": "/adapters/poet"}


async def test_load_and_unload_as_vllm_answers(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    loaded = await http.post(LOAD, json=POET)
    assert loaded.status_code == 200
    assert loaded.text == "Success: LoRA adapter 'poet' added successfully."
    (request,) = fleet.registered
    assert (request.source, request.base_model) == ("/adapters/poet", "")
    assert "poet" in {model["id"] for model in (await http.get("/v1/models")).json()["data"]}
    unloaded = await http.post(UNLOAD, json={"lora_name": "poet", "lora_int_id": 7})
    assert unloaded.status_code == 200
    assert unloaded.text == "Success: LoRA adapter 'poet' removed successfully."
    assert "poet" not in fleet.adapters


async def test_a_name_that_exists_needs_load_inplace(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    pirate = {"lora_name": "pirate", "lora_path": "/new"}
    error = error_of(await http.post(LOAD, json=pirate), 400)
    assert (error["param"], error["code"]) == ("lora_name", "adapter_exists")
    assert "'pirate' has already been loaded" in error["message"]
    assert "load_inplace" in error["message"]
    assert (await http.post(LOAD, json=pirate | {"load_inplace": True})).status_code == 200
    assert fleet.adapters["pirate"].versions[0].source.endswith("/pirate/1")
    new = POET | {"load_inplace": True, "base_model": "base", "is_3d_lora_weight": False}
    assert (await http.post(LOAD, json=new)).status_code == 200
    assert [request.must_be_new for request in fleet.registered] == [True, False, False]
    assert fleet.registered[-1].base_model == "base"


async def test_an_unknown_name_cannot_be_unloaded(http: httpx.AsyncClient) -> None:
    error = error_of(await http.post(UNLOAD, json={"lora_name": "nobody"}), 404)
    assert error["param"] == "lora_name"
    assert "'nobody' cannot be found" in error["message"]


async def test_what_the_registry_refuses_is_told_in_vllm_s_words(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    error = error_of(await http.post(LOAD, json=POET | {"lora_path": "relative"}), 400)
    assert (error["param"], error["code"]) == ("lora_path", "source_invalid")
    fleet.register_error = NotFoundError("SOURCE_NOT_FOUND", "no such directory")
    error = error_of(await http.post(LOAD, json=POET), 404)
    assert (error["param"], error["code"]) == ("lora_path", "source_not_found")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (LOAD, {"lora_name": "poet"}, "lora_path"),
        (LOAD, {"lora_path": "/a"}, "lora_name"),
        (LOAD, POET | {"lora_name": ""}, "lora_name"),
        (LOAD, POET | {"lora_path": None}, "lora_path"),
        (LOAD, POET | {"load_inplace": "yes"}, "load_inplace"),
        (LOAD, POET | {"is_3d_lora_weight": True}, "is_3d_lora_weight"),
        (LOAD, POET | {"pinned": True}, "pinned"),
        (UNLOAD, {}, "lora_name"),
        (UNLOAD, {"lora_name": "pirate", "lora_int_id": "1"}, "lora_int_id"),
        (UNLOAD, {"lora_name": "pirate", "lora_path": "/a"}, "lora_path"),
    ],
)
async def test_refused_fields_are_named(
    http: httpx.AsyncClient, fleet: FakeFleet, path: str, body: dict[str, Any], param: str
) -> None:
    assert error_of(await http.post(path, json=body), 400)["param"] == param
    assert fleet.registered == [] and "pirate" in fleet.adapters


async def test_the_token_for_a_private_source(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    headers = {"x-chorale-source-token": "hf_1", "cookie": "secret"}
    assert (await http.post(LOAD, json=POET, headers=headers)).status_code == 200
    assert fleet.metadata[-1]["x-chorale-source-token"] == "hf_1"
    assert "cookie" not in fleet.metadata[-1]
    headers = {"x-chorale-source-token": "two words"}
    assert error_of(await http.post(LOAD, json=POET, headers=headers), 400)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
    ],
)
@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_what_a_web_page_may_send_to_another_site_is_415(
    http: httpx.AsyncClient, fleet: FakeFleet, path: str, content_type: str | None
) -> None:
    headers = {"origin": "http://evil.example"}
    if content_type is not None:
        headers["content-type"] = content_type
    raw = b'{"lora_name": "pirate", "lora_path": "/adapters/x", "load_inplace": true}'
    error = error_of(await http.post(path, content=raw, headers=headers), 415)
    assert "content-type: application/json" in error["message"]
    assert fleet.registered == [] and "pirate" in fleet.adapters


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_a_web_page_that_asks_first_is_not_let_in(http: httpx.AsyncClient, path: str) -> None:
    asked = {
        "origin": "http://evil.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    preflight = await http.options(path, headers=asked)
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


async def test_json_with_parameters_is_json(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    raw = b'{"lora_name": "pirate"}'
    assert (await http.post(UNLOAD, content=raw, headers=headers)).status_code == 200


async def test_generations_need_no_content_type(http: httpx.AsyncClient) -> None:
    raw = b'{"prompt": "x", "max_tokens": 1}'
    form = {"content-type": "application/x-www-form-urlencoded"}  # as `curl -d` says
    response = await http.post("/v1/completions", content=raw, headers=form)
    assert response.status_code == 200


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_turned_off_it_is_404_and_says_so(fleet: FakeFleet, path: str) -> None:
    async with (
        running_gateway(fleet, http_registry=False) as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        error = error_of(await http.post(path, json={"lora_name": "pirate"}), 404)
        assert "--http-registry" in error["message"]
    assert "pirate" in fleet.adapters


@pytest.mark.parametrize(
    ("host", "asked", "served"),
    [
        ("127.0.0.1", None, True),
        ("127.1.2.3", None, True),
        ("localhost", None, True),
        ("::1", None, True),
        ("[::1]", None, True),
        ("0.0.0.0", None, False),
        ("[::]", None, False),
        ("10.0.0.1", None, False),
        ("gateway.example", None, False),
        ("0.0.0.0", True, True),
        ("127.0.0.1", False, False),
    ],
)
def test_left_out_it_is_on_where_only_this_machine_comes(
    host: str, asked: bool | None, served: bool
) -> None:
    assert GatewayOptions(host=host, http_registry=asked).serves_http_registry is served


async def test_they_share_the_bound_of_calls_to_the_control_plane(fleet: FakeFleet) -> None:
    fleet.register_delay_s = 600.0
    async with (
        running_gateway(fleet, max_concurrent_requests=2) as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        loading = [asyncio.create_task(http.post(LOAD, json=POET)) for _ in range(2)]
        await eventually(lambda: len(fleet.metadata) == 2)
        error = error_of(await http.post(UNLOAD, json={"lora_name": "pirate"}), 429)
        assert error["code"] == "gateway_full"
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

        async def is_taken() -> bool:
            return (await http.post(UNLOAD, json={"lora_name": "pirate"})).status_code != 429

        await eventually(is_taken, "who went away holds no place")
    assert fleet.registered == []
