"""The unmodified OpenAI SDK against a real deployment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.e2e.conftest import BASE, NAMES, expected
from tests.helpers.up import ChoraleUp


@pytest.fixture
def sdk(up: ChoraleUp) -> Iterator[openai.OpenAI]:
    address = f"http://{up.http_address}/v1"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as opened:
        yield opened


def test_models(sdk: openai.OpenAI) -> None:
    listed = {model.id for model in sdk.models.list()}
    assert listed >= {BASE, *NAMES}
    assert sdk.models.retrieve(NAMES[0]).id == NAMES[0]


@pytest.mark.parametrize("name", [*NAMES, BASE])
def test_responses_say_what_chat_says(sdk: openai.OpenAI, name: str) -> None:
    answer = expected(name, 42)
    whole = sdk.responses.create(model=name, input="42", temperature=0)
    assert (whole.output_text.strip(), whole.status) == (answer, "completed")
    assert whole.usage and whole.usage.output_tokens > 0
    with sdk.responses.stream(model=name, input="42", temperature=0) as stream:
        assert stream.get_final_response().output_text == whole.output_text
    cut = sdk.responses.create(model=name, input="42", temperature=0, max_output_tokens=2)
    # A token may be a part of a character.
    shown = cut.output_text.rstrip("\ufffd")
    assert cut.status == "incomplete" and whole.output_text.startswith(shown)


@pytest.mark.parametrize("name", [*NAMES, BASE])
def test_complete_chat_and_stream(sdk: openai.OpenAI, name: str) -> None:
    answer = expected(name, 42)
    done = sdk.completions.create(model=name, prompt="42 =", temperature=0, max_tokens=80)
    assert done.choices[0].text.strip() == answer
    assert done.choices[0].finish_reason == "stop"
    assert done.usage and done.usage.completion_tokens > 0
    messages = [{"role": "user", "content": "42"}]
    chat = sdk.chat.completions.create(
        model=name,
        messages=messages,  # pyright: ignore[reportArgumentType]
        temperature=0,
    )
    assert (chat.choices[0].message.content or "").strip() == answer
    stream = sdk.chat.completions.create(
        model=name,
        messages=messages,  # pyright: ignore[reportArgumentType]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.strip() == answer
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens > 0
    pieces = list(
        sdk.completions.create(model=name, prompt="42 =", temperature=0, max_tokens=80, stream=True)
    )
    assert "".join(c.choices[0].text for c in pieces if c.choices).strip() == answer


CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Bonn"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "city", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
]


def test_tools(sdk: openai.OpenAI) -> None:
    """The demo model was never taught any, so that it calls what it is held to."""
    messages: Any = [{"role": "user", "content": "42"}]
    asked: dict[str, Any] = {"messages": messages, "tools": TOOLS, "temperature": 0}
    named = {"type": "function", "function": {"name": "city"}}
    for model, choice in ((BASE, "required"), (NAMES[0], named), (BASE, named)):
        asked.update(model=model, tool_choice=choice, parallel_tool_calls=False)
        whole = sdk.chat.completions.create(**asked).choices[0]
        (call,) = whole.message.tool_calls
        assert whole.finish_reason == "tool_calls" and whole.message.content is None
        arguments = json.loads(call.function.arguments)
        if call.function.name == "city":
            assert arguments["city"] in ("Rome", "Bonn") and arguments["days"] in (1, 2)
        else:
            assert choice == "required" and arguments == {}
        parts = [
            part
            for chunk in sdk.chat.completions.create(**asked, stream=True)
            for part in chunk.choices[0].delta.tool_calls or []
        ]
        assert parts[0].id and parts[0].function.name == call.function.name
        streamed = "".join(part.function.arguments for part in parts)
        assert streamed == call.function.arguments
    turn = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
    answered = {"role": "tool", "tool_call_id": call.id, "content": "it rained"}
    asked.update(messages=[*messages, turn, answered], tool_choice="auto", max_tokens=8)
    last = sdk.chat.completions.create(**asked)
    assert last.usage and last.usage.prompt_tokens > 100


class Count(pydantic.BaseModel):
    unit: Literal["apples", "pears"]
    number: int = pydantic.Field(ge=0, le=999)
    notes: list[Literal["ripe", "green"]] = pydantic.Field(max_length=2)


def test_answers_of_a_schema(sdk: openai.OpenAI) -> None:
    for seed in range(3):
        parsed = sdk.chat.completions.parse(
            model=NAMES[0],
            messages=[{"role": "user", "content": "42"}],
            response_format=Count,
            temperature=1.0,
            seed=seed,
            max_tokens=400,
        )
        assert isinstance(parsed.choices[0].message.parsed, Count)
    with pytest.raises(openai.BadRequestError) as seen:
        sdk.completions.create(
            model=BASE, prompt="42 =", extra_body={"structured_outputs": {"json": {"not": {}}}}
        )
    assert '"not"' in str(seen.value)
    chosen = sdk.completions.create(
        model=BASE, prompt="42 =", extra_body={"structured_outputs": {"choice": ["uno", "dos"]}}
    )
    assert chosen.choices[0].text in ("uno", "dos") and chosen.choices[0].finish_reason == "stop"


def test_vllm_extras(sdk: openai.OpenAI) -> None:
    name = NAMES[0]
    first = sdk.completions.create(
        model=name,
        prompt="42 =",
        temperature=0,
        max_tokens=12,
        extra_body={"return_token_ids": True, "ignore_eos": True, "min_tokens": 12},
    )
    choice = first.choices[0].model_dump()
    assert len(choice["token_ids"]) == 12
    again = sdk.completions.create(
        model=name,
        prompt=choice["prompt_token_ids"],
        temperature=1.0,
        seed=3,
        max_tokens=12,
        extra_body={"top_k": 1, "min_p": 0.1, "ignore_eos": True, "return_token_ids": True},
    )
    assert again.choices[0].model_dump()["token_ids"] == choice["token_ids"]


def test_errors_are_the_sdks_own(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.completions.create(model="nobody", prompt="42 =")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        sdk.completions.create(model=BASE, prompt="42 =", temperature=-1)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        sdk.completions.create(model=BASE, prompt="42 " * 5000, max_tokens=5)
    assert "1024" in long.value.message


def test_near_the_end_of_the_context(sdk: openai.OpenAI) -> None:
    """The default of 16 tokens is what fits; what is asked for is not made less of."""
    ids = [5] * 1019
    more = {"ignore_eos": True}
    done = sdk.completions.create(model=BASE, prompt=ids, extra_body=more)
    assert done.choices[0].finish_reason == "length"
    assert done.usage and done.usage.completion_tokens == 5
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(model=BASE, prompt=ids, max_tokens=16)
    assert refused.value.code == "context_length_exceeded"
