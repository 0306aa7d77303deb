"""LoRAX's API, as lorax-client calls and reads it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from chorale.v1 import inference_pb2 as pb
from tests.helpers.fake_data_plane import DRAWN_SEED, story, text_of
from tests.helpers.fake_fleet import FakeFleet

# All that lorax-client 0.6 sends when it is given nothing but a prompt.
DEFAULTS: dict[str, Any] = {
    "adapter_id": None,
    "adapter_source": None,
    "merged_adapters": None,
    "api_token": None,
    "do_sample": False,
    "max_new_tokens": 4,
    "ignore_eos_token": False,
    "repetition_penalty": None,
    "return_full_text": False,
    "stop": [],
    "seed": None,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "truncate": None,
    "typical_p": None,
    "best_of": None,
    "watermark": False,
    "details": True,
    "decoder_input_details": False,
    "return_k_alternatives": None,
    "response_format": None,
}
IDS = story(DRAWN_SEED, 4)


def body(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "a b", "stream": False, "parameters": DEFAULTS | parameters}


async def events_of(http: httpx.AsyncClient, path: str, sent: dict[str, Any]) -> list[Any]:
    response = await http.post(path, json=sent)
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    assert response.text.endswith("\n\n")
    return [json.loads(event.removeprefix("data:")) for event in response.text.split("\n\n")[:-1]]


async def test_whole(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    response = await http.post("/", json=body(adapter_id="pirate"))
    assert response.status_code == 200, response.text
    (whole,) = response.json()
    assert whole["generated_text"] == text_of(IDS)
    details = whole["details"]
    assert (details["finish_reason"], details["seed"], details["prefill"]) == ("length", None, [])
    assert (details["prompt_tokens"], details["generated_tokens"]) == (2, 4)
    assert [token["id"] for token in details["tokens"]] == IDS
    assert {token["special"] for token in details["tokens"]} == {False}
    (sent,) = [request for plane in fleet.planes for request in plane.requests]
    assert (fleet.admits[-1].model, sent.prompt) == ("pirate", "a b")
    assert sent.sampling == pb.SamplingParameters(max_tokens=4, temperature=0, logprobs=0)


async def test_whole_without_a_list_or_details(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json={"inputs": "a", "parameters": None})
    assert set(response.json()) == {"generated_text"}
    full = await http.post("/generate", json=body(return_full_text=True))
    assert full.json()["generated_text"] == "a b" + text_of(IDS)


@pytest.mark.parametrize(("path", "stream"), [("/", True), ("/generate_stream", False)])
async def test_stream(http: httpx.AsyncClient, path: str, stream: bool) -> None:
    sent = body() | {"stream": stream or None}
    events = await events_of(http, path, sent)
    assert [event["token"]["id"] for event in events] == IDS
    assert "".join(event["token"]["text"] for event in events) == text_of(IDS)
    assert [event["generated_text"] for event in events] == [None] * 3 + [text_of(IDS)]
    assert [event["details"] for event in events[:-1]] == [None] * 3
    assert events[-1]["details"]["generated_tokens"] == 4


async def test_the_token_that_ends_it_is_special(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    for plane in fleet.planes:
        plane._stream = _ended_by_token_2  # type: ignore[method-assign]
    events = await events_of(http, "/generate_stream", body() | {"stream": True})
    shown = [(event["token"]["text"], event["token"]["special"]) for event in events]
    assert shown == [("x", False), ("", True)]
    assert events[-1]["details"]["finish_reason"] == "eos_token"
    (whole,) = (await http.post("/", json=body())).json()
    assert [token["special"] for token in whole["details"]["tokens"]] == [False, True]


async def _ended_by_token_2(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
    yield pb.GenerateResponse(accepted=pb.Accepted(seed=1))
    positions = [
        pb.TokenLogprobs(chosen=pb.TokenLogprob(token_id=token_id, text=text))
        for token_id, text in ((1, "x"), (2, "</s>"))
    ]
    yield pb.GenerateResponse(tokens=pb.TokenChunk(text="x", token_ids=[1, 2], logprobs=positions))
    yield pb.GenerateResponse(
        finished=pb.Finished(finish_reason=pb.FINISH_REASON_STOP, stop_token_id=2)
    )


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.5}, 0.5),
        ({"temperature": 1.0}, 0.0),
        ({"temperature": 0.0, "do_sample": True}, 0.0),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.5, "temperature": 2.0}, 2.0),
    ],
)
async def test_when_it_samples(
    http: httpx.AsyncClient, fleet: FakeFleet, parameters: dict[str, Any], temperature: float
) -> None:
    (whole,) = (await http.post("/", json=body(**parameters))).json()
    (sent,) = [request for plane in fleet.planes for request in plane.requests]
    assert sent.sampling.temperature == temperature
    assert whole["details"]["seed"] == (DRAWN_SEED if temperature else None)


async def test_the_token_for_a_private_source(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    assert (await http.post("/", json=body(api_token="hf_1"))).status_code == 200
    assert fleet.metadata[-1]["x-chorale-source-token"] == "hf_1"
    response = await http.post("/", json=body(api_token="two words"))
    assert response.json()["error_type"] == "validation"


@pytest.mark.parametrize(
    ("sent", "status", "kind", "said"),
    [
        (body(adapter_id="gone"), 404, "validation", "gone"),
        (body(truncate=5), 400, "validation", "truncate=5"),
        (body(adapter_source="hub"), 400, "validation", "adapter_source"),
        (body(best_of=2), 400, "validation", "best_of=2"),
        (body(max_new_tokens=0), 400, "validation", "max_new_tokens=0"),
        (body(unheard_of=None), 400, "validation", "unheard_of"),
        ({"inputs": ""}, 400, "validation", "inputs"),
        ({"inputs": ["a"]}, 400, "validation", "inputs"),
        ({}, 400, "validation", "inputs is missing"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream"])
async def test_failures_are_lorax_s(
    http: httpx.AsyncClient, path: str, sent: dict[str, Any], status: int, kind: str, said: str
) -> None:
    response = await http.post(path, json={**sent, "stream": None})
    assert response.status_code == status
    error = response.json()
    assert set(error) == {"error", "error_type"}
    assert error["error_type"] == kind and said in error["error"]


async def test_a_failure_in_mid_stream_is_the_last_event(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    async def fail(plane: Any, done: int) -> None:
        if done == 2:
            raise RuntimeError("secret")

    for plane in fleet.planes:
        plane.before_token = fail
    *_, last = await events_of(http, "/generate_stream", body() | {"stream": True})
    assert last["error_type"] == "generation" and "secret" not in last["error"]


async def test_info(http: httpx.AsyncClient) -> None:
    info = (await http.get("/info")).json()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_length"]) == (
        "base",
        512,
        511,
    )
