"""What a data plane learns for the next reports: how true expectations came, and text's length."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dataplane.rpc.foresight import Foresight
from dataplane.rpc.text_ratio import TextRatio
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_control_plane import make_ticket

NAME = "chorale_data_plane_expected_to_true_first_token_ratio"


def shown(foresight: Foresight) -> str:
    registry = CollectorRegistry()
    registry.register(foresight)
    return generate_latest(registry).decode()


async def test_expected_first_tokens_are_held_against_true_ones(start_rig: StartRig) -> None:
    async with start_rig() as rig:
        await rig.generate(ticket=make_ticket(expected_ttft_s=3600.0))
        await rig.generate(ticket=make_ticket(expected_ttft_s=1e-6))
        await rig.generate(ticket=make_ticket())
        text = shown(rig.service.foresight)
    assert f"{NAME}_count 2.0" in text, "once for each request with an expectation"
    assert f'{NAME}_bucket{{le="0.1"}} 1.0' in text
    assert f'{NAME}_bucket{{le="10.0"}} 1.0' in text


async def test_characters_for_a_token(start_rig: StartRig) -> None:
    async with start_rig() as rig:
        assert rig.service.text_ratio.characters_per_token == 0.0
        await rig.generate(prompt_token_ids={"ids": [5, 6]})
        assert rig.service.text_ratio.characters_per_token == 0.0, "tokens tell nothing of text"
        accepted = (await rig.generate(prompt="hello there"))[0].accepted
        expected = 11 / accepted.num_prompt_tokens
        assert rig.service.text_ratio.characters_per_token == pytest.approx(expected)


def test_the_ratio_follows_what_is_sent() -> None:
    ratio = TextRatio()
    ratio.note(400, 100)
    assert ratio.characters_per_token == 4.0
    for _ in range(1000):
        ratio.note(100, 100)
    assert ratio.characters_per_token == pytest.approx(1.0, abs=0.01)
