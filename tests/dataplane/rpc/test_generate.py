from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from chorale.errors import (
    InvalidArgumentError,
)
from chorale.v1 import inference_pb2
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_control_plane import eventually, make_ticket
from tests.helpers.fake_engine import FakeScript
from tests.helpers.rig import BACKEND, EngineLog, ids_of, text_of, tokens_of

STOP = inference_pb2.FINISH_REASON_STOP
LENGTH = inference_pb2.FINISH_REASON_LENGTH
EMOJI = "hello 👩‍👩‍👧 größe e\u0301 你好 🇩🇪!"


async def test_accepted_then_tokens_then_finished(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    reply = ids_of(" world, this is")
    async with start_rig(FakeScript(tokens=reply)) as rig:
        ticket = make_ticket(
            tenant="acme",
            adapter_name="poet",
            adapter_version=3,
            adapter_digest="d" * 64,
            adapter_source="file:///a",
            adapter_source_token="mine",
        )
        events = await rig.generate(
            request_id="r-1", ticket=ticket, sampling={"seed": 2**64 - 1, "max_tokens": len(reply)}
        )
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["accepted", *["tokens"] * (len(kinds) - 2), "finished"]
    prompt = BACKEND.encode("hello").ids
    assert prompt[0] == 0, "BOS is part of the prompt"
    assert events[0].accepted == inference_pb2.Accepted(
        request_id="r-1",
        model="poet",
        adapter_version=3,
        adapter_digest="d" * 64,
        data_plane_id="dp-1",
        num_prompt_tokens=len(prompt),
        seed=2**64 - 1,
    )
    assert tokens_of(events) == reply
    assert text_of(events) == " world, this is"
    finished = events[-1].finished
    assert finished.finish_reason == LENGTH and finished.WhichOneof("stop_match") is None
    assert finished.usage.num_prompt_tokens == len(prompt)
    assert finished.usage.num_completion_tokens == len(reply)
    assert finished.usage.num_cached_tokens == 3
    assert (finished.timings.queue_s, finished.timings.adapter_load_s) == (0.25, 0.125)
    assert 0 < finished.timings.time_to_first_token_s <= finished.timings.total_s
    (submit,) = engine_log.of("Submit")
    assert submit["prompt"] == prompt and submit["tenant"] == "acme"
    adapter = {"digest": "d" * 64, "source": "file:///a", "name": "poet", "token": "mine"}
    assert submit["adapter"] == {**adapter, "invocation_tokens": []}
    assert engine_log.of("Abort") == []


async def test_base_model_defaults(start_rig: StartRig, engine_log: EngineLog) -> None:
    async with start_rig(FakeScript(tokens=[20] * 64)) as rig:
        events = await rig.generate(prompt_token_ids={"ids": [7, 8, 9]})
    accepted = events[0].accepted
    assert (accepted.model, accepted.adapter_version, accepted.adapter_digest) == ("base", 0, "")
    assert accepted.request_id
    (submit,) = engine_log.of("Submit")
    assert submit["prompt"] == [7, 8, 9], "token ids are taken as they are"
    assert submit["adapter"] is None and submit["tenant"] == "default"
    assert submit["deadline_s"] is None
    assert submit["sampling"]["max_tokens"] == 64 - 3
    assert submit["sampling"]["seed"] == accepted.seed
    assert events[-1].finished.usage.num_completion_tokens == 61


async def test_seeds_are_drawn_anew(start_rig: StartRig) -> None:
    async with start_rig() as rig:
        seeds = {(await rig.generate())[0].accepted.seed for _ in range(4)}
    assert len(seeds) == 4


async def test_chat_goes_through_the_template(start_rig: StartRig, engine_log: EngineLog) -> None:
    chat = {"messages": [{"role": "user", "content": "hi 你"}]}
    async with start_rig() as rig:
        await rig.generate(chat=chat)
        with pytest.raises(InvalidArgumentError, match="no such role here") as raised:
            await rig.generate(chat={"messages": [{"role": "forbidden", "content": ""}]})
    assert raised.value.reason == "CHAT_TEMPLATE_FAILED"
    assert engine_log.of("Submit")[0]["prompt"] == ids_of("user: hi 你\nassistant:")


@pytest.mark.parametrize("burst", [1, 2, 7])
async def test_no_character_is_split(start_rig: StartRig, burst: int) -> None:
    reply = ids_of(EMOJI)
    async with start_rig(FakeScript(tokens=reply, burst=burst)) as rig:
        events = await rig.generate(prompt_token_ids={"ids": [5]})
    assert text_of(events) == EMOJI and tokens_of(events) == reply
    assert not any("\ufffd" in event.tokens.text for event in events)


async def test_incomplete_text_comes_with_finished(start_rig: StartRig) -> None:
    reply = ids_of("a🙂")[:-1]
    async with start_rig(FakeScript(tokens=reply)) as rig:
        events = await rig.generate()
    assert events[-1].finished.text == "\ufffd" and text_of(events) == "a\ufffd"


@pytest.mark.parametrize("burst", [1, 3, 50])
@pytest.mark.parametrize("stop", [["o wor"], ["zzz", "wor"], [", th"], ["是"]])
async def test_stop_string_across_token_borders(
    start_rig: StartRig, engine_log: EngineLog, burst: int, stop: list[str]
) -> None:
    text = "hello world, this 是 a stop"
    reply = ids_of(text) + ids_of(" more") * 3
    # The engine never ends it, however far ahead it is, unless it says all at once.
    most = (len(reply) - 1) // burst * burst
    script = FakeScript(tokens=reply, burst=burst, hang_after=most or None)
    async with start_rig(script) as rig:
        events = await rig.generate(prompt_token_ids={"ids": [5]}, sampling={"stop": stop})
        finished = events[-1].finished
        assert finished.finish_reason == STOP and finished.stop_string == stop[-1]
        assert text_of(events) == text[: text.index(stop[-1])]
        sent = tokens_of(events)
        assert finished.usage.num_completion_tokens == len(sent) < len(reply)
        assert stop[-1] in BACKEND.decode(sent) and stop[-1] not in BACKEND.decode(sent[:-1])
        if burst < 50:
            await engine_log.wait_for("Abort")
        await eventually(lambda: rig.engine.num_open == 0)


async def test_text_that_may_begin_a_stop_string_is_held_back(start_rig: StartRig) -> None:
    reply = ids_of("hello wor")
    async with start_rig(FakeScript(tokens=reply)) as rig:
        events = await rig.generate(sampling={"stop": ["world"]})
    assert events[-1].finished.text == "wor"
    assert events[-1].finished.finish_reason == LENGTH
    assert text_of(events) == "hello wor"


async def test_stop_strings_wait_for_min_tokens(start_rig: StartRig) -> None:
    reply = ids_of("aXbXcXd")
    assert len(reply) == 7
    async with start_rig(FakeScript(tokens=reply)) as rig:
        events = await rig.generate(sampling={"stop": ["X"], "min_tokens": 3})
    assert text_of(events) == "aXb" and len(tokens_of(events)) == 4


async def test_eos_ends_without_text(start_rig: StartRig) -> None:
    reply = [*ids_of("hello"), 1]
    async with start_rig(FakeScript(tokens=reply, finish="stop", stop_token_id=1)) as rig:
        events = await rig.generate()
    finished = events[-1].finished
    assert text_of(events) == "hello" and tokens_of(events) == reply
    assert finished.finish_reason == STOP and finished.stop_token_id == 1
    assert finished.usage.num_completion_tokens == len(reply)


async def test_stop_token_ends_without_its_text(start_rig: StartRig) -> None:
    reply = [*ids_of("hello"), *ids_of(".")]
    script = FakeScript(tokens=reply, finish="stop", stop_token_id=reply[-1])
    async with start_rig(script) as rig:
        events = await rig.generate(sampling={"stop_token_ids": [reply[-1]]})
    assert text_of(events) == "hello" and events[-1].finished.stop_token_id == reply[-1]


async def test_logprobs(start_rig: StartRig) -> None:
    reply = ids_of("a🙂")
    async with start_rig(FakeScript(tokens=reply, logprobs=True)) as rig:
        events = await rig.generate(sampling={"logprobs": 2})
    entries = [entry for event in events for entry in event.tokens.logprobs]
    assert [entry.chosen.token_id for entry in entries] == reply
    assert [entry.chosen.text for entry in entries][:2] == ["a", "\ufffd"]
    assert [[top.token_id for top in entry.top] for entry in entries] == [[id_, 9] for id_ in reply]
    assert entries[0].top[1].logprob == -1.5
    assert entries[0].top[1].text == BACKEND.decode([9])


@pytest.mark.parametrize("cut", range(0, 14, 2))
async def test_resumed_elsewhere_without_a_lost_or_repeated_piece(
    start_rig: StartRig, engine_log: EngineLog, cut: int
) -> None:
    reply = ids_of("hello 🙂 wor é stop w")
    sampling: dict[str, Any] = {"stop": ["stop word", "🙂 x"], "max_tokens": len(reply)}
    sampling["logprobs"] = 0
    async with start_rig(FakeScript(tokens=reply, interval_s=0.002, logprobs=True)) as rig:
        whole = await rig.generate(sampling=sampling)
        before, sent = "", 0
        for event in whole:  # what a client has that lost its stream after `cut` tokens
            if event.WhichOneof("event") == "tokens" and sent < cut:
                before += event.tokens.text
                sent += len(event.tokens.token_ids)
        rest = await rig.generate(sampling=sampling, generated_token_ids=tokens_of(whole)[:sent])
    assert tokens_of(rest) == reply[sent:]
    assert before + text_of(rest) == text_of(whole) == "hello 🙂 wor é stop w"
    offsets = [
        [p.text_offset for e in events for p in e.tokens.logprobs] for events in (whole, rest)
    ]
    assert offsets[1] == offsets[0][sent:] and offsets[0] == sorted(offsets[0])
    assert offsets[0][-1] == len(text_of(whole)) - 1, "a token for each of the last characters"
    assert rest[-1].finished.usage.num_completion_tokens == len(reply)
    resubmitted = [submit["generated"] for submit in engine_log.of("Submit")[1:]]
    assert resubmitted == ([reply[:sent]] if sent < len(reply) else [])


@pytest.mark.parametrize(
    ("generated", "sampling", "reason", "text"),
    [
        ("ab", {"max_tokens": 2}, LENGTH, ""),
        ("abX", {"max_tokens": 9, "stop": ["X"]}, STOP, ""),
        ("ab</s>", {"max_tokens": 9, "stop": ["bc"]}, STOP, "b"),
    ],
)
async def test_resumed_after_its_end_finishes_without_the_engine(
    start_rig: StartRig,
    engine_log: EngineLog,
    generated: str,
    sampling: dict[str, Any],
    reason: int,
    text: str,
) -> None:
    async with start_rig() as rig:
        events = await rig.generate(generated_token_ids=ids_of(generated), sampling=sampling)
    assert [event.WhichOneof("event") for event in events] == ["accepted", "finished"]
    assert events[-1].finished.finish_reason == reason and events[-1].finished.text == text
    assert events[-1].finished.usage.num_completion_tokens == len(ids_of(generated))
    assert engine_log.of("Submit") == []


async def test_tokenizing_a_long_prompt_does_not_stall_other_streams(start_rig: StartRig) -> None:
    ready = {"max_context_tokens": 100_000}
    async with start_rig(FakeScript(tokens=[20] * 4, ready=ready)) as rig:
        text = "the quick brown fox größe " * 40_000
        # On a clock that stands still with this process, as when the machine has others to serve.
        began = time.process_time()
        slow = asyncio.create_task(rig.generate(prompt=text))
        pauses = []
        while not slow.done():
            before = time.process_time()
            await asyncio.sleep(0.001)
            pauses.append(time.process_time() - before)
        took = time.process_time() - began
        with pytest.raises(InvalidArgumentError, match="tokens"):
            await slow
        assert max(pauses) < took / 2, "the event loop stood still while a thread tokenized"


@pytest.mark.parametrize(
    ("asked", "allowed", "given"), [(9, 0, 0), (9, 5, 5), (3, 5, 3), (-4, 0, -4), (0, -2, -2)]
)
async def test_priority_goes_no_higher_than_the_ticket_allows(
    start_rig: StartRig, engine_log: EngineLog, asked: int, allowed: int, given: int
) -> None:
    async with start_rig() as rig:
        await rig.generate(priority=asked, ticket=make_ticket(max_priority=allowed))
    assert [submit["priority"] for submit in engine_log.of("Submit")] == [given]


async def test_who_finds_what_is_cached_of_a_prompt(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    def ticket(tenant: str, apart: bool) -> bytes:
        return make_ticket(tenant=tenant, tenant_prefixes=apart)

    asked = [
        (ticket("ada", False), ""),
        (ticket("bob", False), ""),
        (ticket("ada", True), ""),
        (ticket("bob", True), ""),
        (ticket("ada", False), "s"),
        (ticket("bob", False), "s"),
        (ticket("ada", True), "s"),
        (ticket("ada", False), "3:ada"),
        (ticket("a", True), "da"),
    ]
    async with start_rig() as rig:
        for signed, salt in asked:
            await rig.generate(ticket=signed, cache_salt=salt)
    scopes = [submit["cache_scope"] for submit in engine_log.of("Submit")]
    assert scopes[0] == scopes[1] == "", "without salt and setting all share"
    assert scopes[4] == scopes[5], "a salt alone is anybody's who knows it"
    assert len(set(scopes)) == len(asked) - 2


async def test_a_prompts_logprobs_come_before_its_first_token(start_rig: StartRig) -> None:
    prompt = list(range(5, 155))
    script = FakeScript(tokens=[20, 21], ready={"max_context_tokens": 256})
    async with start_rig(script) as rig:
        sampling = {"prompt_logprobs": 2, "max_tokens": 2}
        events = await rig.generate(prompt_token_ids={"ids": prompt}, sampling=sampling)
        (alone,) = (
            event.tokens.prompt_logprobs
            for event in await rig.generate(prompt_token_ids={"ids": [7]}, sampling=sampling)
            if event.tokens.prompt_logprobs
        )
    chunks = [event.tokens for event in events if event.HasField("tokens")]
    of_prompt = [len(chunk.prompt_logprobs) for chunk in chunks]
    assert of_prompt[-1] == 0 and sum(of_prompt) == len(prompt)
    assert max(of_prompt) <= 64, "others go on in between"
    assert not any(chunk.token_ids or chunk.text for chunk in chunks if chunk.prompt_logprobs)
    first, *rest = [each for chunk in chunks for each in chunk.prompt_logprobs]
    assert first.chosen.token_id == 5 and first.chosen.text and not first.top
    assert [each.chosen.token_id for each in rest] == prompt[1:]
    assert all(each.chosen.logprob == -each.chosen.token_id / 8 for each in rest)
    assert all([one.token_id for one in each.top] == [0, 1] for each in rest)
    assert tokens_of(events) == [20, 21]
    assert [each.chosen.token_id for each in alone] == [7]
