from __future__ import annotations

from typing import Any

import grpc
import pytest

from chorale.errors import (
    ChoraleError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_control_plane import eventually, make_ticket
from tests.helpers.fake_engine import FakeScript
from tests.helpers.rig import EngineLog, tokens_of


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": ""}, "PROMPT_EMPTY"),
        ({"prompt_token_ids": {}}, "PROMPT_EMPTY"),
        ({"chat": {}}, "PROMPT_EMPTY"),
        ({"prompt": None}, "PROMPT_MISSING"),
        ({"chat": {"messages": [{"content": "x"}]}}, "CHAT_ROLE_EMPTY"),
        ({"prompt_token_ids": {"ids": [5] * 64}}, "PROMPT_TOO_LONG"),
        ({"prompt": "x " * 100}, "PROMPT_TOO_LONG"),
        ({"chat": {"messages": [{"role": "user"}] * 65}}, "PROMPT_TOO_LONG"),
        ({"prompt_token_ids": {"ids": [5, 400]}}, "TOKEN_OUT_OF_VOCABULARY"),
        ({"generated_token_ids": [400]}, "TOKEN_OUT_OF_VOCABULARY"),
        (
            {"generated_token_ids": [5, 5], "sampling": {"max_tokens": 1}},
            "GENERATED_TOKEN_IDS_TOO_LONG",
        ),
        ({"request_id": "r" * 129}, "REQUEST_ID_TOO_LONG"),
        ({"prompt_token_ids": {"ids": [5, 5]}, "sampling": {"max_tokens": 63}}, "CONTEXT_EXCEEDED"),
        ({"sampling": {"temperature": float("nan")}}, "SAMPLING_OUT_OF_RANGE"),
        ({"sampling": {"stop": [""]}}, "SAMPLING_OUT_OF_RANGE"),
    ],
)
async def test_invalid_requests(
    start_rig: StartRig, engine_log: EngineLog, fields: dict[str, Any], reason: str
) -> None:
    async with start_rig() as rig:
        with pytest.raises(InvalidArgumentError) as raised:
            await rig.generate(**fields)
        assert raised.value.reason == reason
        assert raised.value.metadata["field"].split(".")[0].split("[")[0] in raised.value.message
        assert rig.service._num_open == 0
    assert engine_log.of("Submit") == []


async def test_a_prompt_of_the_whole_context_but_one_fits(start_rig: StartRig) -> None:
    async with start_rig() as rig:
        events = await rig.generate(prompt_token_ids={"ids": [5] * 63})
    assert len(tokens_of(events)) == 1


async def test_open_requests_are_bounded(start_rig: StartRig) -> None:
    async with start_rig(FakeScript(hang_after=0), max_open=2) as rig:
        calls = [rig.call(), rig.call()]
        for call in calls:
            await call.read()
        with pytest.raises(ResourceExhaustedError) as raised:
            await rig.generate()
        assert raised.value.reason == "TOO_MANY_REQUESTS" and raised.value.retry_after_s == 1.0
        calls[0].cancel()
        await eventually(lambda: rig.service._num_open == 1)
        third = rig.call()
        assert (await third.read()).WhichOneof("event") == "accepted"
        for call in (calls[1], third):
            call.cancel()


@pytest.mark.parametrize(
    ("ticket", "reason"),
    [
        (b"", "TICKET_MISSING"),
        (b"\xff\xff", "TICKET_MALFORMED"),
        ({"key": b"x" * 32}, "TICKET_FORGED"),
        ({"key_id": "unknown"}, "TICKET_FORGED"),
        ({"expires_in_s": -1}, "TICKET_EXPIRED"),
        ({"data_plane_id": "dp-2"}, "TICKET_WRONG_DATA_PLANE"),
        ({"base_model": "other"}, "TICKET_WRONG_BASE_MODEL"),
    ],
)
async def test_bad_tickets(
    start_rig: StartRig, ticket: bytes | dict[str, Any], reason: str
) -> None:
    async with start_rig() as rig:
        signed = ticket if isinstance(ticket, bytes) else make_ticket(**ticket)
        with pytest.raises(ChoraleError) as raised:
            await rig.generate(ticket=signed)
    assert raised.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert raised.value.reason == reason and "Admit" in raised.value.message


async def test_a_ticket_is_good_for_one_request_and_one_tenant(start_rig: StartRig) -> None:
    async with start_rig() as rig:
        ticket = make_ticket(tenant="acme")
        await rig.generate(ticket=ticket, tenant="acme")
        with pytest.raises(ChoraleError) as raised:
            await rig.generate(ticket=ticket)
        assert raised.value.reason == "TICKET_USED"
        with pytest.raises(ChoraleError) as raised:
            await rig.generate(ticket=make_ticket(tenant="acme"), tenant="other")
        assert raised.value.reason == "TENANT_MISMATCH"


async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    start_rig: StartRig,
) -> None:
    async with start_rig() as rig:
        with pytest.raises(InvalidArgumentError) as raised:
            await rig.generate(prompt="x" * 4_000_000)
    assert raised.value.reason == "PROMPT_TOO_LONG"
    assert "4000000 characters" in raised.value.message and len(raised.value.message) < 400


async def test_a_salt_that_is_too_long_is_refused(start_rig: StartRig) -> None:
    async with start_rig() as rig:
        await rig.generate(cache_salt="s" * 256)
        with pytest.raises(InvalidArgumentError, match="at most 256") as raised:
            await rig.generate(cache_salt="s" * 257)
    assert raised.value.reason == "CACHE_SALT_TOO_LONG"


@pytest.mark.parametrize("priority", [-11, 11, 2**31 - 1])
async def test_a_priority_out_of_range_is_refused(start_rig: StartRig, priority: int) -> None:
    async with start_rig() as rig:
        with pytest.raises(InvalidArgumentError) as raised:
            await rig.generate(priority=priority)
    assert raised.value.reason == "PRIORITY_OUT_OF_RANGE"
    assert str(priority) in raised.value.message
