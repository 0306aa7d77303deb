"""Requests for activated LoRAs: from which token of the prompt on, and without any."""

from __future__ import annotations

from typing import Any

import pytest

from chorale.errors import InvalidArgumentError
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_control_plane import make_ticket
from tests.helpers.rig import EngineLog, ids_of

INVOCATION = ids_of(" judge:")
CLAIMS: dict[str, Any] = {
    "adapter_name": "judge",
    "adapter_digest": "d" * 64,
    "adapter_source": "/judge",
    "adapter_invocation_tokens": INVOCATION,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "so judge: it is; judge: yes"},
        {"prompt_token_ids": {"ids": [*ids_of("so judge: it is;"), *INVOCATION, *ids_of(" yes")]}},
        {"chat": {"messages": [{"role": "user", "content": "so judge: it is; judge: yes"}]}},
        # Longer than what is prepared in the event loop.
        {"prompt_token_ids": {"ids": [*[5] * 30, *INVOCATION]}, "generated_token_ids": INVOCATION},
    ],
)
async def test_the_last_place_in_the_prompt_counts(
    start_rig: StartRig, engine_log: EngineLog, fields: dict[str, Any]
) -> None:
    async with start_rig() as rig:
        await rig.generate(ticket=make_ticket(**CLAIMS), **fields)
        (submit,) = await engine_log.wait_for("Submit")
    start, prompt = submit["active_from"], submit["prompt"]
    assert start > 0
    assert prompt[start : start + len(INVOCATION)] == INVOCATION
    assert INVOCATION not in [prompt[at : at + len(INVOCATION)] for at in range(start + 1, 99)]
    assert submit["adapter"]["invocation_tokens"] == INVOCATION


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "judge:"}, "prompt"),
        ({"prompt_token_ids": {"ids": INVOCATION[:-1]}}, "prompt_token_ids"),
        ({"chat": {"messages": [{"role": "user", "content": "hello"}]}}, "chat"),
        ({"prompt": "hello", "generated_token_ids": INVOCATION}, "prompt"),
    ],
)
async def test_a_prompt_without_is_refused(
    start_rig: StartRig, engine_log: EngineLog, fields: dict[str, Any], field: str
) -> None:
    """PEFT would answer as the base model."""
    async with start_rig() as rig:
        with pytest.raises(InvalidArgumentError) as raised:
            await rig.generate(ticket=make_ticket(**CLAIMS), **fields)
        assert rig.service.num_open == 0
    error = raised.value
    assert error.reason == "INVOCATION_MISSING"
    assert error.metadata == {
        "field": field,
        "invocation_tokens": ", ".join(map(str, INVOCATION)),
    }
    assert field in error.message and "' judge:'" in error.message
    assert engine_log.of("Submit") == []


async def test_a_long_invocation_is_not_told_whole(start_rig: StartRig) -> None:
    claims = CLAIMS | {"adapter_invocation_tokens": [100] * 256}
    async with start_rig() as rig:
        with pytest.raises(InvalidArgumentError) as raised:
            await rig.generate(ticket=make_ticket(**claims))
    assert len(raised.value.message) < 800 and "…" in raised.value.message


async def test_other_adapters_apply_from_the_first_token_on(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    async with start_rig() as rig:
        ticket = make_ticket(**CLAIMS | {"adapter_invocation_tokens": []})
        await rig.generate(ticket=ticket, prompt="so judge: it is")
        (submit,) = await engine_log.wait_for("Submit")
    assert submit["active_from"] == 0 and submit["adapter"]["invocation_tokens"] == []
