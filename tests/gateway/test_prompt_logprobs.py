"""Log-probabilities of prompts over HTTP, and through the loss of a data plane."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from chorale import AsyncClient
from tests.gateway.test_failover import dies_after
from tests.helpers.fake_data_plane import story, text_of
from tests.helpers.fake_fleet import FakeFleet, RunningGateway

TOP = {"t0": -0.125, "t1": -0.125}


async def whole_of(sdk: openai.AsyncOpenAI, **asked: Any) -> Any:
    """The one choice; the stream of the same request must add up to it."""
    asked = {"model": "pirate", "seed": 7, "max_tokens": 2, "echo": True, "logprobs": 2} | asked
    answer = await sdk.completions.create(**asked)
    (choice,) = answer.choices
    text, lists = "", {name: [] for name in choice.logprobs.model_dump()}
    async for event in await sdk.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        for part in event.choices:
            text += part.text
            for name, values in (part.logprobs.model_dump() if part.logprobs else {}).items():
                lists[name] += values
        if event.usage:
            assert event.usage == answer.usage
    assert (text, lists) == (choice.text, choice.logprobs.model_dump())
    return answer


async def test_echo_with_logprobs(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    answer = await whole_of(sdk, prompt="to be or not")
    (choice,) = answer.choices
    shown, tail = choice.logprobs, [text_of([each]) for each in story(7, 2)]
    assert choice.text == "to be or not" + "".join(tail)
    assert shown.tokens == ["<s>", "to", " be", " or", " not", *tail]
    assert shown.token_logprobs == [None, -0.25, -0.5, -0.75, -1.0, -0.5, -0.5]
    assert shown.top_logprobs[0] is None
    assert shown.top_logprobs[1] == TOP | {"to": -0.25} and len(shown.top_logprobs) == 7
    offsets = shown.text_offset
    assert offsets[0] == 0, "a special token is no part of the text"
    for token, offset in zip(shown.tokens[1:], offsets[1:], strict=True):
        assert choice.text[offset:].startswith(token)
    assert answer.usage.completion_tokens == 2
    assert fleet.planes[0].requests[0].sampling.prompt_logprobs == 2


async def test_token_ids_are_echoed_by_their_texts(sdk: openai.AsyncOpenAI) -> None:
    answer = await whole_of(sdk, prompt=[5, 6], logprobs=0)
    (choice,) = answer.choices
    assert choice.text == "<s>#5 #6" + text_of(story(7, 2))
    assert choice.logprobs.text_offset[:3] == [0, 3, 5]
    assert choice.logprobs.top_logprobs[1] == {"#5": -0.25}


async def test_the_prompt_alone(sdk: openai.AsyncOpenAI) -> None:
    answer = await whole_of(sdk, prompt="to be", max_tokens=0)
    (choice,) = answer.choices
    assert choice.text == "to be" and choice.logprobs.tokens == ["<s>", "to", " be"]
    assert choice.finish_reason == "length" and answer.usage.completion_tokens == 0
    whole = await sdk.completions.create(model="pirate", prompt="to be", max_tokens=0, echo=True)
    assert whole.choices[0].text == "to be" and whole.choices[0].logprobs is None


@pytest.mark.parametrize("at", [-5, -3, -1, 0, 1])
async def test_a_lost_data_plane_repeats_nothing(
    client: AsyncClient, fleet: FakeFleet, at: int
) -> None:
    first, second = fleet.planes
    first.before_token = dies_after(at)
    options: Any = {"model": "pirate", "max_tokens": 3, "prompt_logprobs": 1}
    done = await client.complete("a b c d", **options)
    assert second.requests, "it went on there"
    texts = [position.chosen.text for position in done.prompt_logprobs]
    assert texts == ["<s>", "a", " b", " c", " d"]
    assert [len(position.top) for position in done.prompt_logprobs] == [0, 1, 1, 1, 1]
    assert len(done.token_ids) == 3
    again = second.requests[0]
    assert again.sampling.HasField("prompt_logprobs") == (not again.generated_token_ids)
    assert not fleet.admits[0].HasField("prompt_prefixes")


@pytest.mark.parametrize("at", [-3, 3])
async def test_who_goes_on_by_himself_and_asks_is_told(
    client: AsyncClient, fleet: FakeFleet, at: int
) -> None:
    """Once, also where the data plane is lost before the prompt was told, or after it."""
    first, second = fleet.planes
    options: Any = {"model": "pirate", "max_tokens": 5, "seed": 7, "prompt_logprobs": 0}
    whole = await client.complete("a b c d", **options)
    first.before_token = dies_after(at)
    done = await client.complete("a b c d", **options, generated_token_ids=whole.token_ids[:2])
    assert [each.chosen.text for each in done.prompt_logprobs] == ["<s>", "a", " b", " c", " d"]
    assert done.token_ids == whole.token_ids[2:]
    assert second.requests[-1].sampling.HasField("prompt_logprobs") == (at < 0)


async def test_lorax_tells_the_prefill(gateway: RunningGateway) -> None:
    asked = {"max_new_tokens": 2, "details": True, "decoder_input_details": True}
    async with httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http:
        answer = await http.post("/generate", json={"inputs": "a b", "parameters": asked})
        assert answer.json()["details"]["prefill"] == [
            {"id": 0, "text": "<s>", "logprob": None},
            {"id": 1, "text": "a", "logprob": -0.25},
            {"id": 2, "text": " b", "logprob": -0.5},
        ]
        for path, changes in (("/generate_stream", {}), ("/generate", {"details": False})):
            parameters = asked | changes
            refused = await http.post(path, json={"inputs": "a b", "parameters": parameters})
            assert refused.status_code in (400, 422)
            assert "decoder_input_details" in refused.json()["error"]
