"""The unmodified openai SDK against the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from chorale.errors import (
    InternalError,
    ResourceExhaustedError,
)
from tests.helpers.fake_data_plane import DRAWN_SEED, story, text_of
from tests.helpers.fake_fleet import FakeFleet, RunningGateway
from tests.helpers.waiting import eventually

HELLO = [{"role": "user", "content": "hello you"}]


async def test_models_are_base_models_adapters_and_aliases(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet
) -> None:
    models = {model.id: model.model_dump() async for model in sdk.models.list()}
    assert list(models) == ["base", "pirate", "prod"]
    assert models["base"]["parent"] is None and models["base"]["max_model_len"] == 512
    assert models["pirate"]["parent"] == "base"
    assert models["pirate"]["root"] == "file:///adapters/pirate/2"
    assert models["pirate"]["created"] == 1_700_000_002
    assert models["prod"]["root"] == "file:///adapters/pirate/1"


async def test_models_list_goes_through_all_pages(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet
) -> None:
    for i in range(1500):
        fleet.add_adapter(f"a/{i:04}")
    ids = [model.id async for model in sdk.models.list()]
    assert len(ids) == len(set(ids)) == 1503


async def test_one_model_by_every_kind_of_name(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    fleet.add_adapter("team/poet")
    for name in ("base", "pirate", "pirate@1", "prod", "team/poet"):
        assert (await sdk.models.retrieve(name)).id == name
    with pytest.raises(openai.NotFoundError) as seen:
        await sdk.models.retrieve("nobody")
    assert seen.value.code == "model_not_found" and seen.value.param == "model"


async def test_completion_whole(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    answer = await sdk.completions.create(model="pirate", prompt="one two three", seed=5)
    (choice,) = answer.choices
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.model == "pirate" and answer._request_id == answer.id
    assert choice.text == text_of(story(5, 16)), "max_tokens is 16 when left out"
    assert choice.finish_reason == "length" and choice.logprobs is None
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 16, 19)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 2
    assert fleet.planes[0].requests[0].sampling.temperature == 1.0


async def test_sampling_parameters_arrive(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    await sdk.completions.create(
        model="pirate",
        prompt="x",
        max_tokens=3,
        temperature=0.5,
        top_p=0.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        stop=["END", "stop"],
        seed=-1,
        user="me",
        extra_body={
            "top_k": 5,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "ignore_eos": True,
            "min_tokens": 2,
            "stop_token_ids": [4, 5],
        },
    )
    sampling = fleet.planes[0].requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (3, 0.5, 0.25)
    assert not sampling.clamp_max_tokens
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (5, 0.125, 1.5)
    assert sampling.ignore_eos and sampling.min_tokens == 2
    assert list(sampling.stop) == ["END", "stop"] and list(sampling.stop_token_ids) == [4, 5]
    assert sampling.seed == 2**64 - 1 and not sampling.HasField("logprobs")


@pytest.mark.parametrize("all_of_them", [-1, 0])
async def test_top_k_of_all(sdk: openai.AsyncOpenAI, fleet: FakeFleet, all_of_them: int) -> None:
    await sdk.completions.create(model="", prompt="x", extra_body={"top_k": all_of_them})
    assert fleet.planes[0].requests[0].sampling.top_k == 0


async def test_several_prompts_and_choices(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    answer = await sdk.completions.create(
        model="pirate", prompt=["a", "b c"], n=2, seed=10, max_tokens=3, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    expected = [f"{p}{text_of(story(seed, 3))}" for p in ("a", "b c") for seed in (10, 11)]
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3, "each prompt once"
    assert answer.usage.completion_tokens == 12


async def test_prompts_of_token_ids(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    await sdk.completions.create(model="base", prompt=[1, 2, 3], max_tokens=1)
    answer = await sdk.completions.create(model="base", prompt=[[4], [5, 6]], max_tokens=1)
    sent = sorted(list(r.prompt_token_ids.ids) for r in fleet.planes[0].requests)
    assert sent == [[1, 2, 3], [4], [5, 6]] and len(answer.choices) == 2


async def test_token_ids_are_returned_when_asked_for(sdk: openai.AsyncOpenAI) -> None:
    more = {"return_token_ids": True}
    answer = await sdk.completions.create(
        model="base", prompt="x", seed=1, max_tokens=4, extra_body=more
    )
    assert answer.choices[0].model_dump()["token_ids"] == story(1, 4)
    stream = await sdk.chat.completions.create(
        model="base", messages=HELLO, seed=1, max_tokens=4, stream=True, extra_body=more
    )
    chunks = [chunk.choices[0].model_dump()["token_ids"] async for chunk in stream]
    assert [t for token_ids in chunks for t in token_ids] == story(1, 4)


async def test_completion_logprobs(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.completions.create(
        model="base", prompt="x", seed=1, max_tokens=2, logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    tokens = [text_of([t]) for t in story(1, 2)]
    assert logprobs.tokens == tokens and logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.text_offset == [0, len(tokens[0])]
    assert logprobs.top_logprobs is not None
    assert list(logprobs.top_logprobs[0].values()) == [-0.5, -1.5, -9999.0]


async def test_chat_logprobs(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(
        model="base", messages=HELLO, seed=1, max_tokens=2, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    first = logprobs.content[0]
    assert first.token == text_of([story(1, 1)[0]]) and first.bytes == list(first.token.encode())
    assert [top.logprob for top in first.top_logprobs] == [-0.5, -1.5]


async def test_chat_whole(sdk: openai.AsyncOpenAI, fleet: FakeFleet) -> None:
    parts: Any = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    answer = await sdk.chat.completions.create(
        model="prod",
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "ok", "refusal": None},
        ],
        seed=2,
        max_completion_tokens=4,
    )
    (choice,) = answer.choices
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant"
    assert choice.message.content == text_of(story(2, 4))
    (sent,) = fleet.planes[0].requests
    assert [(m.role, m.content) for m in sent.chat.messages] == [
        ("system", "be brief"),
        ("user", "hello"),
        ("assistant", "ok"),
    ]
    assert sent.sampling.max_tokens == 4


async def test_chat_max_tokens_is_what_is_left_by_default(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet
) -> None:
    await sdk.chat.completions.create(model="base", messages=HELLO)
    assert not fleet.planes[0].requests[0].sampling.HasField("max_tokens")


async def test_completion_stream(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.completions.create(
        model="pirate", prompt="a b", seed=3, max_tokens=6, stream=True, echo=True
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks) == "a b" + text_of(story(3, 6))
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({c.id for c in chunks}) == 1 and all(c.usage is None for c in chunks)


async def test_chat_stream_with_usage(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="pirate",
        messages=HELLO,
        n=2,
        seed=3,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    texts, reasons = ["", ""], []
    chunks = [chunk async for chunk in stream]
    for chunk in chunks[:-1]:
        assert chunk.object == "chat.completion.chunk" and chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [text_of(story(seed, 6)) for seed in (3, 4)]
    assert chunks[0].choices[0].delta.role == "assistant" and reasons == ["length", "length"]
    usage = chunks[-1].usage
    assert chunks[-1].choices == [] and usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 12)


async def test_stream_goes_on_when_its_data_plane_dies(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet
) -> None:
    async def die(plane: Any, done: int) -> None:
        if done == 4:
            await plane.kill()
            await asyncio.sleep(60)

    fleet.planes[0].before_token = die
    stream = await sdk.completions.create(model="pirate", prompt="x", max_tokens=9, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == text_of(story(DRAWN_SEED, 9))


async def test_error_after_the_first_byte_reaches_the_sdk(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet
) -> None:
    async def fail(plane: Any, done: int) -> None:
        if done == 3:
            raise InternalError("ENGINE_FAULT", "a fault")

    fleet.planes[0].before_token = fail
    stream = await sdk.completions.create(model="pirate", prompt="x", stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError) as seen:
        async for chunk in stream:
            texts.append(chunk.choices[0].text)
    assert "a fault" in str(seen.value) and "".join(texts) == text_of(story(DRAWN_SEED, 2))


async def test_one_failed_choice_fails_and_ends_the_rest(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet, gateway: RunningGateway
) -> None:
    plane = fleet.planes[0]
    plane.errors = [ResourceExhaustedError("FULL", "full")]
    plane.delay_s = 0.02
    with pytest.raises(openai.RateLimitError):
        await sdk.completions.create(model="pirate", prompt="x", n=3, max_tokens=100_000)
    await gateway.until_idle()
    await eventually(lambda: plane.running == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_cancels_upstream_at_once(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet, stream: bool
) -> None:
    plane = fleet.planes[0]
    plane.delay_s = 600
    task = asyncio.create_task(
        sdk.completions.create(model="pirate", prompt="x", n=2, stream=stream, max_tokens=500)
    )
    await eventually(lambda: plane.running == 2)
    if stream:
        await (await task).close()
    else:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: plane.running == 0)


async def test_blocking_sdk(gateway: RunningGateway) -> None:
    def use() -> tuple[str | None, list[str]]:
        with openai.OpenAI(base_url=f"{gateway.http_url}/v1", api_key="x", max_retries=0) as sdk:
            answer = sdk.chat.completions.create(
                model="pirate", messages=HELLO, seed=1, max_tokens=3
            )
            with sdk.completions.create(
                model="pirate", prompt="x", seed=1, max_tokens=3, stream=True
            ) as stream:
                texts = [chunk.choices[0].text for chunk in stream]
            return answer.choices[0].message.content, texts

    content, texts = await asyncio.to_thread(use)
    assert content == "".join(texts) == text_of(story(1, 3))
