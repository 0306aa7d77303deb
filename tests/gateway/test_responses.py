"""OpenAI's Responses API as its SDK uses it, against made-up answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from chorale.errors import InternalError, InvalidArgumentError, ResourceExhaustedError
from tests.gateway.http_errors import error_of
from tests.helpers.fake_data_plane import story, text_of
from tests.helpers.fake_fleet import FakeFleet
from tests.helpers.waiting import eventually

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "été",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
NOW: Any = {"type": "function", "name": "now", "parameters": None, "strict": None}
ANSWER = (
    'Let me see.<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


async def events_of(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """Of a stream, each with the name that it goes under."""
    body = {"model": "pirate", "input": "x", "stream": True, **fields}
    answer = await http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    events: list[dict[str, Any]] = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        events.append(event)
    return events


async def test_a_whole_answer(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    answer = await sdk.responses.create(
        model="pirate",
        input="hello you",
        instructions="Be brief.",
        max_output_tokens=5,
        temperature=0.5,
        top_p=0.25,
        metadata={"a": "b"},
        extra_body={"seed": 5, "top_k": 3, "cache_salt": "s"},
    )
    assert answer.output_text == text_of(story(5, 5))
    assert answer.id.startswith("resp_") and answer.object == "response"
    assert answer._request_id == answer.id
    assert (answer.model, answer.status) == ("pirate", "incomplete")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    (message,) = answer.output
    assert message.type == "message" and message.id.startswith("msg_")
    assert (message.role, message.status) == ("assistant", "incomplete")
    usage = answer.usage
    assert usage is not None
    assert usage.input_tokens and usage.output_tokens == 5
    assert usage.total_tokens == usage.input_tokens + 5
    assert usage.input_tokens_details.cached_tokens == usage.input_tokens - 1
    assert (answer.instructions, answer.metadata) == ("Be brief.", {"a": "b"})
    assert (answer.temperature, answer.top_p, answer.max_output_tokens) == (0.5, 0.25, 5)
    assert answer.to_dict()["store"] is False and answer.previous_response_id is None
    request = fleet.planes[0].requests[0]
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "Be brief."),
        ("user", "hello you"),
    ]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (5, 0.5, 0.25)
    assert (sampling.top_k, request.cache_salt) == (3, "s")


async def test_an_answer_that_ends_by_itself(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    fleet.planes[0].pieces = ["It is", " fine."]
    answer = await sdk.responses.create(model="pirate", input="x")
    assert (answer.status, answer.output_text) == ("completed", "It is fine.")
    assert answer.incomplete_details is None and answer.completed_at is not None
    assert answer.output[0].to_dict() == {
        "id": answer.output[0].id,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [
            {"type": "output_text", "text": "It is fine.", "annotations": [], "logprobs": []}
        ],
    }
    assert fleet.planes[0].requests[0].sampling.temperature == 1.0
    assert not fleet.planes[0].requests[0].sampling.HasField("max_tokens")
    fleet.planes[0].pieces = []
    empty = await sdk.responses.create(model="pirate", input="x")
    assert (empty.output_text, len(empty.output)) == ("", 1)


async def test_the_events_of_a_text(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    fleet.planes[0].pieces = ["It is", " fine."]
    events = await events_of(http)
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas >= 1
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    created, last = events[0]["response"], events[-1]["response"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    added, done = events[2]["item"], events[-2]["item"]
    assert (added["status"], added["content"]) == ("in_progress", [])
    assert last["output"] == [done] and done["status"] == last["status"] == "completed"
    assert done["content"] == [events[-3]["part"]]
    assert {event["item_id"] for event in events[3:-2]} == {done["id"]}
    text = "".join(event["delta"] for event in events if "delta" in event)
    assert text == events[-4]["text"] == "It is fine."
    assert set(last["usage"]) >= {"input_tokens", "output_tokens"} and created["id"] == last["id"]


async def test_the_sdks_own_accumulation(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    async with sdk.responses.stream(
        model="pirate", input="x", max_output_tokens=4, extra_body={"seed": 7}
    ) as stream:
        snapshots = [e.snapshot async for e in stream if e.type == "response.output_text.delta"]
    assert snapshots[-1] == text_of(story(7, 4))
    fleet.planes[0].pieces = list(ANSWER)
    async with sdk.responses.stream(model="base", input="x", tools=[WEATHER, NOW]) as stream:
        final = await stream.get_final_response()
    text, first, second = final.output
    assert text.type == "message" and final.output_text == "Let me see."
    assert first.type == second.type == "function_call"
    assert (first.name, first.arguments) == ("weather", '{"city": "Rome"}')
    assert (second.name, second.arguments) == ("now", "{}")


class City(BaseModel):
    name: str


async def test_parsed_answers_are_held_to_their_schema(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet
) -> None:
    plane = fleet.planes[0]
    plane.pieces = ['{"name": "Rome"}']
    answer = await sdk.responses.parse(model="base", input="x", text_format=City)
    assert answer.output_parsed == City(name="Rome")
    schema = json.loads(plane.requests[-1].sampling.constraint.json_schema)
    assert schema["properties"] == {"name": {"title": "Name", "type": "string"}}
    form = answer.text
    assert form is not None and form.format is not None and form.format.type == "json_schema"
    await sdk.responses.create(model="base", input="x", text={"format": {"type": "json_object"}})
    assert plane.requests[-1].sampling.constraint.json_object
    await sdk.responses.create(model="base", input="x", text={"format": {"type": "text"}})
    assert not plane.requests[-1].sampling.HasField("constraint")


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_calls_and_their_way_back(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet, size: int
) -> None:
    plane = fleet.planes[0]
    plane.pieces = [ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]
    answer = await sdk.responses.create(model="base", input="x", tools=[WEATHER, NOW])
    assert [item.type for item in answer.output] == ["message", "function_call", "function_call"]
    sent = [json.loads(tool) for tool in plane.requests[-1].chat.tools]
    assert sent[0]["function"]["name"] == "weather" and "été" in plane.requests[-1].chat.tools[0]
    assert sent[1] == {"type": "function", "function": {"name": "now"}}
    calls = [item for item in answer.output if item.type == "function_call"]
    assert len({call.call_id for call in calls} | {call.id for call in calls}) == 4
    history: Any = [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]
    history += [item.to_dict() for item in answer.output]
    history += [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"of {call.name}"}
        for call in calls
    ]
    plane.pieces = ["Fine."]
    last = await sdk.responses.create(model="base", input=history, tools=[WEATHER, NOW])
    assert last.output_text == "Fine."
    user, turn, *outputs = plane.requests[-1].chat.messages
    assert (user.role, user.content) == ("user", "x")
    assert (turn.role, turn.content) == ("assistant", "Let me see.")
    assert [(c.id, c.name, c.arguments) for c in turn.tool_calls] == [
        (calls[0].call_id, "weather", '{"city": "Rome"}'),
        (calls[1].call_id, "now", "{}"),
    ]
    assert [(m.role, m.tool_call_id, m.content) for m in outputs] == [
        ("tool", calls[0].call_id, "of weather"),
        ("tool", calls[1].call_id, "of now"),
    ]


async def test_the_events_of_calls(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    fleet.planes[0].pieces = list(ANSWER)
    events = await events_of(http, tools=[WEATHER, NOW], parallel_tool_calls=True)
    begun = [event["item"] for event in events if event["type"].endswith("item.added")]
    ended = [event["item"] for event in events if event["type"].endswith("item.done")]
    assert [item["type"] for item in begun] == ["message", "function_call", "function_call"]
    assert [item["id"] for item in begun] == [item["id"] for item in ended]
    assert begun[1] == {**ended[1], "status": "in_progress", "arguments": ""}
    for at in (1, 2):
        of_it = [event for event in events if event.get("item_id") == begun[at]["id"]]
        pieces = [e["delta"] for e in of_it if e["type"].endswith("arguments.delta")]
        assert "".join(pieces) == of_it[-1]["arguments"] == ended[at]["arguments"]
        assert of_it[-1]["type"] == "response.function_call_arguments.done"
        assert {event["output_index"] for event in of_it} == {at}
    assert events[-1]["response"]["output"] == ended


async def test_what_is_said_of_tools_arrives(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    plane = fleet.planes[0]
    plane.pieces = ["x"]
    chosen: Any = {"type": "function", "name": "now"}
    answer = await sdk.responses.create(
        model="base",
        input="x",
        tools=[WEATHER, NOW],
        tool_choice=chosen,
        parallel_tool_calls=False,
    )
    chat = plane.requests[-1].chat
    assert chat.tool_name == "now" and chat.single_tool_call
    assert answer.tool_choice.to_dict() == chosen  # type: ignore[union-attr]
    assert answer.parallel_tool_calls is False
    assert [tool.to_dict()["name"] for tool in answer.tools] == ["weather", "now"]
    await sdk.responses.create(model="base", input="x", tools=[WEATHER], tool_choice="required")
    assert plane.requests[-1].chat.tool_call_required
    none = await sdk.responses.create(model="base", input="x", tools=[WEATHER], tool_choice="none")
    assert not plane.requests[-1].chat.tools and none.output_text == "x"


async def test_logprobs(sdk: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    options: Any = {"model": "pirate", "input": "x", "max_output_tokens": 3, "top_logprobs": 2}
    include: Any = ["message.output_text.logprobs"]
    answer = await sdk.responses.create(**options, include=include)
    content = answer.output[0].content[0]  # type: ignore[union-attr]
    assert content.type == "output_text" and content.logprobs is not None
    assert len(content.logprobs) == 3
    assert [len(each.top_logprobs) for each in content.logprobs] == [2, 2, 2]
    assert answer.top_logprobs == 2
    events = await events_of(http, **options, include=include)
    deltas = [event for event in events if event["type"].endswith("text.delta")]
    told = [each for event in deltas for each in event["logprobs"]]
    (done,) = (event for event in events if event["type"].endswith("text.done"))
    assert told == done["logprobs"] and len(told) == 3


async def test_whom_it_is_for(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    body = {"model": "prod", "input": "x", "max_output_tokens": 1}
    given: dict[str, str] = {}
    for field in ("prompt_cache_key", "safety_identifier", "user"):
        given[field] = f"by {field}"
        answer = await http.post("/v1/responses", json={**body, **given})
        assert answer.status_code == 200 and answer.json()[field] == given[field]
        assert fleet.admits[-1].routing_key == given[field]
    assert answer.headers["x-chorale-model"] == "pirate@1"


async def test_fields_that_ask_for_nothing(http: httpx.AsyncClient) -> None:
    body = {
        "model": "base",
        "input": [{"type": "message", "role": "user", "content": "x", "status": None}],
        "max_output_tokens": 1,
        "background": False,
        "include": ["reasoning.encrypted_content"],
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "tools": [],
        "tool_choice": "none",
        "truncation": "disabled",
    }
    answer = await http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["store"] is False, "whatever was asked for"


async def test_failures_are_told_in_its_words(
    sdk: openai.AsyncOpenAI, http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    plane = fleet.planes[0]
    for field, param in (
        ("chat.messages", "input"),
        ("sampling.max_tokens", "max_output_tokens"),
        ("sampling.constraint.json_schema", "text"),
    ):
        plane.errors = [InvalidArgumentError("WRONG", "no", metadata={"field": field})]
        body = {"model": "base", "input": "x"}
        assert error_of(await http.post("/v1/responses", json=body), 400)["param"] == param
    plane.errors = [ResourceExhaustedError("FULL", "full", retry_after_s=3)]
    with pytest.raises(openai.RateLimitError):
        await sdk.responses.create(model="base", input="x")
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.create(model="nobody", input="x")


async def test_a_failure_in_mid_stream_is_its_last_event(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    plane = fleet.planes[0]

    async def fail(_: Any, num_tokens: int) -> None:
        if num_tokens == 3:
            raise InternalError("BROKEN", "broken")

    plane.before_token = fail
    events = await events_of(http, max_output_tokens=9)
    last = events[-1]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    (message,) = last["response"]["output"]
    assert message["status"] == "incomplete" and message["content"][0]["text"]


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_cancels_upstream_at_once(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet, stream: bool
) -> None:
    plane = fleet.planes[0]
    plane.delay_s = 600
    task: asyncio.Task[Any] = asyncio.create_task(
        sdk.responses.create(model="pirate", input="x", stream=stream)
    )
    await eventually(lambda: plane.running == 1)
    if stream:
        await (await task).close()
    else:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: plane.running == 0)
