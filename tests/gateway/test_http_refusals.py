"""What the HTTP API refuses, and how it says so."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from controlplane.gateway.http.prompts import MAX_TOKEN_IDS
from tests.gateway.http_errors import CHAT, COMPLETION, error_of
from tests.helpers.fake_fleet import FakeFleet, running_fleet, running_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet() -> AsyncIterator[FakeFleet]:
    async with running_fleet() as fleet:
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(fleet: FakeFleet) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running_gateway(fleet) as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        yield http


@pytest.mark.parametrize(
    ("path", "extra", "param"),
    [
        ("completions", {"temperature": 101}, "temperature"),
        ("completions", {"temperature": "0"}, "temperature"),
        ("completions", {"top_p": 0}, "top_p"),
        ("completions", {"n": 0}, "n"),
        ("completions", {"n": 129}, "n"),
        ("completions", {"n": True}, "n"),
        ("completions", {"n": 64, "prompt": ["a", "b", "c"]}, "n"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"max_tokens": 10**30}, "max_tokens"),
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"stop": ["a"] * 17}, "stop"),
        ("completions", {"stop": [""]}, "stop"),
        ("completions", {"stop": "a" * 257}, "stop"),
        ("completions", {"stop_token_ids": [-1]}, "stop_token_ids"),
        ("completions", {"prompt": None}, "prompt"),
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": [1, "a"]}, "prompt"),
        ("completions", {"prompt": ["a", 1]}, "prompt"),
        ("completions", {"prompt": [[1], []]}, "prompt"),
        ("completions", {"prompt": [True]}, "prompt"),
        ("completions", {"prompt": [2**32]}, "prompt"),
        ("completions", {"prompt": {"a": 1}}, "prompt"),
        ("completions", {"prompt": [1], "echo": True}, "echo"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"max_tokens": -1, "echo": True}, "max_tokens"),
        ("completions", {"best_of": 2}, "best_of"),
        ("completions", {"suffix": "end"}, "suffix"),
        ("completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("completions", {"stream": True, "stream_options": {"x": 1}}, "stream_options"),
        (
            "completions",
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options",
        ),
        ("completions", {"guided_json": {}}, "guided_json"),
        ("completions", {"wholly_unknown": None}, "wholly_unknown"),
        ("completions", {"messages": []}, "messages"),
        ("chat/completions", {"tools": [{"type": "function"}]}, "tools"),
        ("chat/completions", {"tool_choice": "auto"}, "tool_choice"),
        ("chat/completions", {"functions": [{}]}, "functions"),
        ("chat/completions", {"audio": {}}, "audio"),
        ("chat/completions", {"modalities": ["text", "audio"]}, "modalities"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"logprobs": 2}, "logprobs"),
        ("chat/completions", {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ("chat/completions", {"echo": True}, "echo"),
        ("chat/completions", {"messages": None}, "messages"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": ["x"]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages"),
        ("chat/completions", {"messages": [{"content": "x"}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "u" * 65, "content": "x"}]}, "messages"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "x", "name": "bob"}]},
            "messages",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages",
        ),
    ],
)
async def test_refused_parameters_are_named(
    http: httpx.AsyncClient, fleet: FakeFleet, path: str, extra: dict[str, Any], param: str
) -> None:
    body = (CHAT if path.startswith("chat") else COMPLETION) | extra
    fleet.admits.clear()
    error = error_of(await http.post(f"/v1/{path}", json=body), 400)
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert fleet.admits == []


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (["a", ""], "stop.1='': String should have at least 1 character"),
        ("a" * 257, "String should have at most 256 characters"),
        (["a"] * 17, "List should have at most 16 items after validation, not 17"),
        (["a", 1], "stop.1=1: Input should be a valid string"),
        (1, "stop=1: Input should be a valid list"),
    ],
)
async def test_what_is_wrong_with_stop_is_told(
    http: httpx.AsyncClient, stop: object, said: str
) -> None:
    response = await http.post("/v1/completions", json=COMPLETION | {"stop": stop})
    assert said in error_of(response, 400)["message"]


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("completions", {"stop": ""}),
        ("completions", {"best_of": 1, "suffix": None, "logit_bias": {}}),
        ("completions", {"stream": False, "stop": None, "seed": None, "n": None}),
        ("completions", {"user": "u", "metadata": {"a": 1}, "store": True, "service_tier": "auto"}),
        ("chat/completions", {"tools": None, "tool_choice": "none", "functions": []}),
        ("chat/completions", {"response_format": {"type": "text"}, "modalities": ["text"]}),
        ("chat/completions", {"max_tokens": 2, "max_completion_tokens": 2}),
        ("chat/completions", {"logprobs": False, "top_logprobs": 0}),
    ],
)
async def test_parameters_that_ask_for_nothing_are_taken(
    http: httpx.AsyncClient, path: str, extra: dict[str, Any]
) -> None:
    body = (CHAT if path.startswith("chat") else COMPLETION) | extra
    response = await http.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b'{"prompt": "\\ud800"}',
        b'{"temperature": Infinity, "prompt": "x"}',
        b'{"max_tokens": 1' + b"0" * 10_000 + b', "prompt": "x"}',
        b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}",
        b'{"prompt": "x", "stop": [' + b",".join([b"1"] * 500_000) + b"]}",
        b'{"prompt": [' + b",".join([b'"x"'] * 500_000) + b"]}",
        b'{"prompt": "x", "model": "' + b"m" * 1_000_000 + b'"}',
    ],
)
async def test_malformed_bodies_are_400(http: httpx.AsyncClient, raw: bytes) -> None:
    error_of(await http.post("/v1/completions", content=raw), 400)


async def test_huge_messages_are_refused_fast(http: httpx.AsyncClient) -> None:
    wild = {f"k{i}": 1 for i in range(100_000)}
    error_of(await http.post("/v1/chat/completions", json=CHAT | {"messages": [wild]}), 400)
    many = [{"role": "user", "content": "x"}] * 10_001
    error_of(await http.post("/v1/chat/completions", json=CHAT | {"messages": many}), 400)


async def test_a_body_of_many_lists_is_not_looked_through_for_garbage(
    http: httpx.AsyncClient,
) -> None:
    collections: list[Any] = []

    def note(phase: str, told: Any) -> None:
        collections.append((phase, told))

    gc.callbacks.append(note)
    try:
        raw = b'{"prompt":[' + b"[]," * 300_000 + b"[]]}"
        response = await http.post("/v1/completions", content=raw)
    finally:
        gc.callbacks.remove(note)
    assert error_of(response, 400)["param"] == "prompt"
    assert len(collections) < 100 and gc.isenabled()  # 300,000 lists are worth 400 of them


async def test_too_many_token_ids_are_refused_before_they_are_looked_at(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    raw = b'{"prompt":[' + b"1," * (MAX_TOKEN_IDS - 1) + b'"x",1]}'
    error = error_of(await http.post("/v1/completions", content=raw), 400)
    assert error["code"] == "context_length_exceeded"
