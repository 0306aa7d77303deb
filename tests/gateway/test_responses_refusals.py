"""What the Responses API does not take, and how it says so."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.gateway.http_errors import error_of
from tests.gateway.test_responses import NOW
from tests.helpers.fake_fleet import FakeFleet

ITEMS: list[tuple[Any, str]] = [
    (7, "input must be a text or a list"),
    ([], "input must be a text or a list"),
    (["x"], "input[0] is of type None"),
    ([{"type": "reasoning", "summary": []}], "input[0] is of type 'reasoning'"),
    ([{"type": "item_reference", "id": "msg_1"}], "none is kept here"),
    ([{"role": "robot", "content": "x"}], "input[0].role is 'robot'"),
    ([{"role": "user", "content": "x", "name": "ada"}], "has 'name'"),
    ([{"role": "user"}], "input[0].content must be"),
    ([{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}], "'input_image'"),
    ([{"role": "user", "content": [{"type": "input_text", "text": 7}]}], "'input_text'"),
    ([{"type": "function_call", "name": "f", "arguments": "{}"}], "call_id, name and arguments"),
    ([{"type": "function_call_output", "output": "x"}], "input[0].call_id is None"),
    ([{"type": "function_call_output", "call_id": "c", "output": 3}], "input[0].output must be"),
]


@pytest.mark.parametrize(("given", "said"), ITEMS)
async def test_input_that_is_refused(http: httpx.AsyncClient, given: Any, said: str) -> None:
    error = error_of(await http.post("/v1/responses", json={"model": "base", "input": given}), 400)
    assert error["param"] == "input" and said in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "name": "no"}}, "tool_choice"),
        ({"tools": [NOW], "text": {"format": {"type": "json_object"}}}, "text"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text"),
        ({"text": {"verbosity": "high"}}, "text"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"include": ["message.output_text.logprobs"], "tools": [NOW]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
    ],
)
async def test_fields_that_are_refused(
    http: httpx.AsyncClient, fleet: FakeFleet, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "base", "input": "x", **fields}
    error = error_of(await http.post("/v1/responses", json=body), 400)
    assert error["param"] == param and param in error["message"]
    assert not fleet.admits, "nothing was asked for"


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "prompt"])
async def test_what_asks_for_something_kept_is_told_the_way_out(
    http: httpx.AsyncClient, field: str
) -> None:
    body = {"model": "base", "input": "x", field: {"id": "1"}}
    error = error_of(await http.post("/v1/responses", json=body), 400)
    assert error["code"] == "unsupported_parameter" and "send all of it" in error["message"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_no_answer_is_kept(http: httpx.AsyncClient, method: str) -> None:
    answer = await http.request(method, "/v1/responses/resp_1")
    error = error_of(answer, 404)
    assert error["code"] == "response_not_found" and "send the conversation" in error["message"]
