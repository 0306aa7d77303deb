"""What an answer must be, as OpenAI's, vLLM's and LoRAX's clients say it."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from chorale.errors import InvalidArgumentError
from chorale.v1 import inference_pb2 as pb
from tests.gateway.test_lorax import body as lorax_body
from tests.helpers.fake_fleet import FakeFleet, RunningGateway

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
CHAT = [{"role": "user", "content": "hello you"}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"prompt": "x"}),
    ("chat/completions", {"messages": CHAT}),
]
WRAPPED = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}


class Person(pydantic.BaseModel):
    name: str
    mood: Literal["good", "bad"]


async def sent(http: httpx.AsyncClient, fleet: FakeFleet, **fields: Any) -> pb.SamplingParameters:
    """What the data plane got, over both of OpenAI's endpoints."""
    for path, given in ASKED:
        response = await http.post(f"/v1/{path}", json={"max_tokens": 2, **given, **fields})
        assert response.status_code == 200, response.text
    first, second = (request.sampling for request in fleet.planes[0].requests[-2:])
    assert first.constraint == second.constraint and first.logit_bias == second.logit_bias
    return first


def schema_of(sampling: pb.SamplingParameters) -> Any:
    return json.loads(sampling.constraint.json_schema)


async def test_openai_formats(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    assert schema_of(await sent(http, fleet, response_format=WRAPPED)) == SCHEMA
    loose = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": None}}
    assert schema_of(await sent(http, fleet, response_format=loose)) == SCHEMA
    form = {"type": "json_object"}
    assert (await sent(http, fleet, response_format=form)).constraint.json_object
    for nothing in ({"type": "text"}, None):
        assert not (await sent(http, fleet, response_format=nothing)).HasField("constraint")


async def test_vllm_structured_outputs(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    async def constraint(**outputs: Any) -> pb.Constraint:
        return (await sent(http, fleet, structured_outputs=outputs)).constraint

    assert json.loads((await constraint(json=SCHEMA)).json_schema) == SCHEMA
    wide = {"enum": ["日" * 15_000]}  # three bytes each, six where it is escaped
    assert json.loads((await constraint(json=wide)).json_schema) == wide
    assert (await constraint(json='{"const": 1}')).json_schema == '{"const": 1}'
    assert (await constraint(regex="a+", disable_any_whitespace=False)).regex == "a+"
    assert list((await constraint(choice=["a", "b"])).choices.texts) == ["a", "b"]
    assert (await constraint(grammar="start: x", json=None)).grammar == "start: x"
    assert (await constraint(json_object=True)).json_object


async def test_logit_bias(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    sampling = await sent(http, fleet, logit_bias={"7": -100, "0": 1.5})
    assert dict(sampling.logit_bias) == {7: -100.0, 0: 1.5}
    assert not (await sent(http, fleet, logit_bias={})).logit_bias


async def test_every_choice_is_constrained(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    await http.post(
        "/v1/completions", json={"prompt": ["a", "b"], "n": 2, "response_format": WRAPPED}
    )
    found = [schema_of(request.sampling) for request in fleet.planes[0].requests]
    assert found == [SCHEMA] * 4


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"response_format": {**WRAPPED, "type": "json_object"}}, "response_format"),
    ({"response_format": {**WRAPPED, "more": 1}}, "response_format"),
    ({"response_format": "json"}, "response_format"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"structured_outputs": {"choice": ["a"] * 257}}, "structured_outputs"),
    ({"structured_outputs": {"choice": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
    (
        {"structured_outputs": {"json": {"const": "a" * 65_536}}},
        "structured_outputs",
    ),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": WRAPPED},
        "structured_outputs",
    ),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "1"}}, "logit_bias"),
    ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
]


async def test_refused_by_name(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    for fields, param in REFUSED:
        for path, given in ASKED:
            response = await http.post(f"/v1/{path}", json={**given, **fields})
            error = response.json()["error"]
            assert response.status_code == 400 and error["param"] == param, (fields, error)
            assert len(error["message"]) < 500 and not fleet.planes[0].requests


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("json_schema", "response_format"),
        ("regex", "structured_outputs"),
        ("choices.texts[0]", "structured_outputs"),
    ],
)
async def test_a_data_planes_refusal_names_the_field(
    http: httpx.AsyncClient, fleet: FakeFleet, field: str, param: str
) -> None:
    metadata = {"field": f"sampling.constraint.{field}"}
    fleet.planes[0].error = InvalidArgumentError("CONSTRAINT_INVALID", "m", metadata=metadata)
    response = await http.post("/v1/completions", json={"prompt": "x"})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (
        400,
        param,
        "constraint_invalid",
    )


async def test_the_sdk_parses_into_a_model(gateway: RunningGateway, fleet: FakeFleet) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.http_url}/v1", api_key="unused", max_retries=0
    ) as sdk:
        with pytest.raises(openai.LengthFinishReasonError):  # the fake data plane tells stories
            await sdk.chat.completions.parse(
                model="pirate",
                messages=CHAT,  # pyright: ignore
                response_format=Person,
                max_tokens=5,
            )
    found = schema_of(fleet.planes[0].requests[0].sampling)
    assert found["properties"]["mood"]["enum"] == ["good", "bad"]
    assert found["additionalProperties"] is False


async def test_lorax(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    async def constraint(form: Any) -> pb.SamplingParameters:
        response = await http.post("/generate", json=lorax_body(response_format=form))
        assert response.status_code == 200, response.text
        return fleet.planes[0].requests[-1].sampling

    for kind in ("json_object", "json_schema"):
        assert schema_of(await constraint({"type": kind, "schema": SCHEMA})) == SCHEMA
    for none in ({}, {"schema": None}):
        assert (await constraint({"type": "json_object", **none})).constraint.json_object
    assert not (await constraint({"type": "text"})).HasField("constraint")
    for bad in ({"type": "json_schema"}, {"type": "text", "schema": {}}, {"type": "x"}, {}):
        response = await http.post("/generate", json=lorax_body(response_format=bad))
        assert response.status_code == 400, response.text
        assert response.json()["error_type"] == "validation"
        assert "response_format" in response.json()["error"]
