"""Function calling as OpenAI's SDK does it, against made-up answers."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import openai
import pytest

from chorale import AsyncClient, find_tool_calls
from chorale.errors import FailedPreconditionError, InvalidArgumentError
from chorale.v1 import inference_pb2 as pb
from tests.gateway.http_errors import error_of
from tests.helpers.fake_fleet import FakeFleet

USER: Any = {"role": "user", "content": "hello you"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "default": None}}}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "été, 夏",
        "parameters": PARAMETERS,
    },
}
NOW: Any = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
ANSWER = (
    'Let me see.<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


async def test_calls_of_a_whole_answer_and_their_way_back(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet
) -> None:
    plane = fleet.planes[0]
    plane.pieces = [ANSWER[at : at + 7] for at in range(0, len(ANSWER), 7)]
    answer = await sdk.chat.completions.create(model="base", messages=[USER], tools=TOOLS, n=2)
    ids: set[str] = set()
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        first, second = choice.message.tool_calls or []
        assert first.type == second.type == "function"
        assert (first.function.name, first.function.arguments) == ("weather", '{"city": "Rome"}')
        assert (second.function.name, second.function.arguments) == ("now", "{}")
        ids |= {first.id, second.id}
    assert len(ids) == 4 and all(id_.startswith("call_") for id_ in ids)
    sent = plane.requests[-1].chat
    assert "été, 夏" in sent.tools[0]
    assert [json.loads(tool) for tool in sent.tools] == TOOLS
    assert not (sent.tool_call_required or sent.tool_name or sent.single_tool_call)

    message = answer.choices[0].message
    calls = message.tool_calls or []
    replies = [{"role": "tool", "tool_call_id": c.id, "content": f"of {c.id}"} for c in calls]
    plane.pieces = ["It is fine."]
    history: Any = [USER, message.model_dump(), *replies]
    last = await sdk.chat.completions.create(model="base", messages=history, tools=TOOLS)
    assert last.choices[0].message.content == "It is fine."
    assert last.choices[0].message.tool_calls is None
    assert last.choices[0].finish_reason == "stop"
    turn, *answers = plane.requests[-1].chat.messages[1:]
    assert turn.content == "Let me see."
    assert [(c.id, c.name, c.arguments) for c in turn.tool_calls] == [
        (calls[0].id, "weather", '{"city": "Rome"}'),
        (calls[1].id, "now", "{}"),
    ]
    assert [each.tool_call_id for each in answers] == [c.id for c in calls]


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_calls_of_a_stream(sdk: openai.AsyncOpenAI, fleet: FakeFleet, size: int) -> None:
    plane = fleet.planes[0]
    plane.pieces = [ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]
    stream = await sdk.chat.completions.create(
        model="base", messages=[USER], tools=TOOLS, stream=True
    )
    content, calls, reasons, pieces = "", dict[int, Any](), list[str](), 0
    async for chunk in stream:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        if choice.finish_reason:
            reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            function = call.function
            assert function is not None
            if call.index not in calls:
                assert call.id and call.type == "function" and function.name
                calls[call.index] = [call.id, function.name, ""]
            else:
                assert call.id is None and function.name is None
            calls[call.index][2] += function.arguments or ""
            pieces += bool(function.arguments)
    assert content == "Let me see." and reasons == ["tool_calls"]
    assert [calls[at][1:] for at in (0, 1)] == [["weather", '{"city": "Rome"}'], ["now", "{}"]]
    assert calls[0][0] != calls[1][0]
    assert pieces == {1: len('{"city": "Rome"}{}'), 5: 5, 1000: 2}[size]


async def test_the_sdks_own_accumulation(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    fleet.planes[0].pieces = list(ANSWER)
    async with sdk.chat.completions.stream(model="base", messages=[USER], tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [call.function.arguments for call in calls] == ['{"city": "Rome"}', "{}"]


async def test_only_calls_and_no_content(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    plane = fleet.planes[0]
    plane.tool_call_format = "mistral"
    plane.pieces = ["[TOOL_CALLS]", ' [{"name": "now", "arguments": {}}]']
    answer = await sdk.chat.completions.create(model="base", messages=[USER], tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].message.content is None
    assert re.fullmatch("[A-Za-z0-9]{9}", call.id)  # as its templates demand


@pytest.mark.parametrize("size", [1, 1000])
async def test_values_in_tags_have_their_parameters_types(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet, size: int
) -> None:
    plane = fleet.planes[0]
    plane.tool_call_format = "qwen3_coder"
    text = "<tool_call>\n<function=weather>\n<parameter=city>\n7\n</parameter>\n</function>\n"
    plane.pieces = [text[at : at + size] for at in range(0, len(text), size)]
    answer = await sdk.chat.completions.create(model="base", messages=[USER], tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "7"}')
    assert answer.choices[0].finish_reason == "tool_calls"
    async with sdk.chat.completions.stream(model="base", messages=[USER], tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.arguments == '{"city": "7"}'


async def test_what_is_cut_off_is_no_whole_call(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    plane = fleet.planes[0]
    plane.pieces = [ANSWER[:60]]
    answer = await sdk.chat.completions.create(
        model="base", messages=[USER], tools=TOOLS, max_tokens=1
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == ANSWER[:60]
    reasons: list[str | None] = []
    arguments = ""
    async for chunk in await sdk.chat.completions.create(
        model="base", messages=[USER], tools=TOOLS, max_tokens=1, stream=True
    ):
        reasons.append(chunk.choices[0].finish_reason)
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments += (call.function and call.function.arguments) or ""
    assert arguments and '{"city": "Rome"}'.startswith(arguments) and reasons[-1] == "length"
    plane.pieces = ['<tool_call>{"name": "other", "arguments": {}}</tool_call>']
    answer = await sdk.chat.completions.create(model="base", messages=[USER], tools=TOOLS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == plane.pieces[0]


async def test_choices_of_tools(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    plane = fleet.planes[0]
    plane.pieces = [ANSWER]

    async def sent(**fields: Any) -> tuple[pb.Chat, Any]:
        body = {"messages": [USER], "tools": TOOLS, **fields}
        response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return plane.requests[-1].chat, response.json()["choices"][0]["message"]

    assert (await sent(tool_choice="required"))[0].tool_call_required
    named, _ = await sent(tool_choice={"type": "function", "function": {"name": "now"}})
    assert named.tool_name == "now" and not named.tool_call_required
    single, _ = await sent(tool_choice="auto", parallel_tool_calls=False)
    assert single.single_tool_call
    assert not (await sent(parallel_tool_calls=True))[0].single_tool_call
    # The model hears of none, and what it says is text.
    none, message = await sent(tool_choice="none", response_format={"type": "json_object"})
    assert not none.tools and message["content"] == ANSWER and "tool_calls" not in message
    assert (await sent(response_format={"type": "text"}))[0].tools


LONG = "x" * 2**18
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": None, "tool_choice": "auto"}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tools": None, "parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, "tools"),
    ({"tools": [NOW, NOW]}, "tools"),
    ({"tools": [NOW] * 129}, "tools"),
    (
        {"tools": [{"type": "function", "function": {"name": "a", "description": "x" * 2**18}}]},
        "tools",
    ),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"functions": [{"name": "x"}]}, "functions"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "x"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 3}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 0}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": {}}]}, "messages"),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": "x",
                    "tool_calls": [
                        {
                            "id": "x",
                            "type": "function",
                            "function": {"name": "now", "arguments": "{}"},
                        }
                    ],
                }
            ]
        },
        "messages",
    ),
]


async def test_refusals_name_the_parameter(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    for extra, param in REFUSED:
        body = {"messages": [USER], "tools": TOOLS, **extra}
        error = error_of(await http.post("/v1/chat/completions", json=body), 400)
        assert error["param"] == param, extra
    assert fleet.admits == []


async def test_refusals_of_data_planes(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    plane = fleet.planes[0]
    body = {"messages": [USER], "tools": TOOLS, "stream": True}
    for field, param in (
        ("chat.tools[0].function.parameters", "tools"),
        ("chat.tool_name", "tool_choice"),
        ("chat.messages[1].tool_calls[0].arguments", "messages"),
    ):
        plane.error = InvalidArgumentError("TOOLS_INVALID", "m", metadata={"field": field})
        assert error_of(await http.post("/v1/chat/completions", json=body), 400)["param"] == param
    metadata = {"field": "chat.tools"}
    plane.error = FailedPreconditionError("TOOLS_UNSUPPORTED", "m", metadata=metadata)
    error = error_of(await http.post("/v1/chat/completions", json=body), 400)
    assert (error["param"], error["code"]) == ("tools", "tools_unsupported")
    plane.error = None
    plane.tool_call_format = ""  # as a data plane without tools has it
    error = error_of(await http.post("/v1/chat/completions", json=body), 503)
    assert error["code"] == "tools_unknown"


async def test_the_python_client(client: AsyncClient, fleet: FakeFleet) -> None:
    fleet.planes[0].pieces = list(ANSWER)
    call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    done = await client.complete(
        messages=[
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "name": "now", "content": "noon"},
        ],
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
    )
    content, calls = find_tool_calls(done.text, done.accepted.tool_call_format, {"weather", "now"})
    assert content == "Let me see." and [c.name for c in calls] == ["weather", "now"]
    chat = fleet.planes[0].requests[-1].chat
    assert chat.tool_call_required and chat.single_tool_call and len(chat.tools) == 2
    assert chat.messages[1].tool_calls[0] == pb.ToolCall(id="c", name="now", arguments="{}")
    assert (chat.messages[2].tool_call_id, chat.messages[2].name) == ("c", "now")
