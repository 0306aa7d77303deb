"""The objective for the first token on its way into the engine."""

from __future__ import annotations

import time
from typing import Any

import pytest

from chorale.errors import InvalidArgumentError, ResourceExhaustedError
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_engine import FakeScript
from tests.helpers.rig import EngineLog


@pytest.mark.parametrize(
    ("own", "asked", "given"),
    [
        (None, {}, None),
        (None, {"seconds": 2, "nanos": 500_000_000}, 2.5),
        (7.0, {}, 7.0),
        (7.0, {"seconds": 2}, 2.0),
        (7.0, {"seconds": 9}, 9.0),
    ],
)
async def test_counts_from_arrival(
    start_rig: StartRig,
    engine_log: EngineLog,
    own: float | None,
    asked: dict[str, Any],
    given: float | None,
) -> None:
    async with start_rig(ttft_slo_s=own) as rig:
        before = time.monotonic()
        await rig.generate(ttft_slo=asked or None)
        after = time.monotonic()
    (submit,) = engine_log.of("Submit")
    first_token_by_s = submit["first_token_by_s"]
    if given is None:
        assert first_token_by_s is None
    else:
        assert first_token_by_s == submit["arrival_s"] + given
        assert before + given <= first_token_by_s <= after + given
    assert submit["deadline_s"] is None


async def test_the_ways_are_not_the_engines_to_spend(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    async with start_rig() as rig:
        now_s = time.monotonic()
        for _ in range(2000):
            rig.service.first_tokens.note(
                arrival_s=now_s - 9.0, submitted_s=now_s - 5.0, made_s=now_s - 2.0, sent_s=now_s
            )
        assert rig.service.first_tokens.path_s(now_s) == pytest.approx(4.0 + 2.0, rel=0.05)
        await rig.generate(ttft_slo={"seconds": 600}, ttft_path_s=30.0)
        told_s = rig.service.first_tokens.way_out_s(now_s)
    (submit,) = engine_log.of("Submit")
    left_s = submit["first_token_by_s"] - submit["arrival_s"]
    assert 600 - 30 - 2.2 < left_s < 600 - 30, "the way back; the way there is in the arrival"
    assert 0.0 < told_s < 2.2


async def test_first_tokens_are_measured(start_rig: StartRig) -> None:
    async with start_rig(FakeScript(first_token_s=0.0)) as rig:
        assert rig.service.first_tokens.path_s(time.monotonic()) == 0.0
        finished = (await rig.generate())[-1].finished
        path_s = rig.service.first_tokens.path_s(time.monotonic())
    assert 0.0 < path_s <= 2 * finished.timings.time_to_first_token_s


async def test_out_of_range_never_reaches_the_engine(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    async with start_rig() as rig:
        with pytest.raises(InvalidArgumentError) as raised:
            await rig.generate(ttft_slo={"seconds": -3})
        assert raised.value.reason == "TTFT_SLO_OUT_OF_RANGE"
        with pytest.raises(InvalidArgumentError) as raised:
            await rig.generate(ttft_path_s=-3.0)
        assert raised.value.reason == "TTFT_PATH_OUT_OF_RANGE"
    assert engine_log.of("Submit") == []


async def test_out_of_reach_is_resource_exhausted_with_a_time_to_try_again(
    start_rig: StartRig,
) -> None:
    fail = {
        "code": "RESOURCE_EXHAUSTED",
        "reason": "DEADLINE_HOPELESS",
        "message": "out of reach",
        "metadata": {"first_token_in_s": "-0.100"},
        "retry_after_s": 3.0,
    }
    async with start_rig(FakeScript(fail_after=0, fail=fail)) as rig:
        with pytest.raises(ResourceExhaustedError) as raised:
            await rig.generate(ttft_slo={"seconds": 1})
    assert (raised.value.reason, raised.value.retry_after_s) == ("DEADLINE_HOPELESS", 3.0)
