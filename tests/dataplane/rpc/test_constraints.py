"""Constraints at the data plane's door."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from chorale.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from chorale.status import from_rpc_error
from dataplane.channel import Vocabulary
from dataplane.constraints.grammar import Grammar, grammar_of
from dataplane.constraints.trials import Trials
from dataplane.constraints.verdict import Verdict
from dataplane.rpc import constraints as module
from dataplane.rpc.constraints import Constraints
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.constraints import PERSON, constraint, demo_vocabulary
from tests.helpers.fake_control_plane import eventually
from tests.helpers.fake_engine import FakeScript
from tests.helpers.prometheus import Metrics
from tests.helpers.rig import BACKEND, EngineLog, ids_of

CHOICES = constraint(choices=["yes", "no"])


def sampling(**kind: Any) -> dict[str, Any]:
    return {"constraint": constraint(**kind), "max_tokens": 3}


async def test_the_engine_is_taught_before_any_request_and_told_the_grammar(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    async with start_rig(FakeScript()) as rig:
        assert len(engine_log.of("Vocabulary")) == 1
        await rig.generate(sampling={"max_tokens": 3, "logit_bias": {7: 1.5, 3: -100.0, 9: 0.0}})
        for kind in ({"choices": ["yes", "no"]}, {"json_schema": PERSON}, {"json_object": True}):
            await rig.generate(sampling=sampling(**kind))
        submits = await engine_log.wait_for("Submit", 4)
        assert [each["type"] for each in engine_log.of("Vocabulary")] == ["Vocabulary"]
        sent = [each["sampling"]["grammar"] for each in submits]
        assert sent[:2] == ["", grammar_of(CHOICES).text] and '"maxLength"' in sent[2]
        assert submits[0]["sampling"]["logit_bias"] == [[3, -100.0], [7, 1.5]]
        (vocabulary,) = engine_log.of("Vocabulary")
        assert vocabulary["num_tokens"] == max(BACKEND.get_vocab().values()) + 1
        assert (vocabulary["vocab_size"], vocabulary["eos_token_ids"]) == (400, [1])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (sampling(json_schema={"not": {}}), '"not"'),
        (sampling(regex="(a"), "unclosed group"),
        (sampling(grammar="start: x"), "unknown name"),
        (sampling(choices=[""]), "empty"),
        ({"constraint": constraint()}, "no kind"),
        ({"logit_bias": {400: 1.0}}, "token 400"),
        ({"logit_bias": {1: 100.5}}, "100.5 for token 1"),
        ({"logit_bias": {1: float("nan")}}, "nan"),
        ({"logit_bias": dict.fromkeys(range(301), 1.0)}, "301 tokens"),
    ],
)
async def test_refused_before_anything_is_promised(
    start_rig: StartRig, engine_log: EngineLog, asked: dict[str, Any], said: str
) -> None:
    async with start_rig() as rig:
        promised: list[Any] = []

        async def ask() -> None:
            try:
                async for event in rig.call(sampling=asked):
                    promised.append(event)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None

        with pytest.raises(InvalidArgumentError) as error:
            await ask()
        assert not promised
        assert said in error.value.message
        assert error.value.metadata["field"].startswith("sampling.")
        assert (await rig.generate(sampling=sampling(choices=["a"])))[-1].HasField("finished")
        assert len(engine_log.of("Submit")) == 1


async def test_an_answer_that_was_complete_when_its_stream_was_lost_ends_at_once(
    start_rig: StartRig,
) -> None:
    """The engine alone knows that nothing can follow: its end has no token."""
    script = FakeScript(tokens=[], finish="stop")
    async with start_rig(script) as rig:
        events = await rig.generate(
            sampling=sampling(choices=["hello"]), generated_token_ids=ids_of("hello")
        )
    finished = events[-1].finished
    assert finished.finish_reason == 1 and finished.WhichOneof("stop_match") is None
    assert finished.usage.num_completion_tokens == len(ids_of("hello"))


def scripted(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[str]:
    """Trials answer with these, or wait for an event of them first; the last one for ever. Returns
    what they are asked."""
    asked: list[str] = []

    class Scripted:
        def __init__(self, vocabulary: object) -> None:
            pass

        def check(self, grammar: str) -> Verdict:
            asked.append(grammar)
            answer = answers[min(len(asked), len(answers)) - 1]
            if isinstance(answer, Exception):
                raise answer
            return answer() if callable(answer) else answer

        def close(self) -> None:
            pass

    monkeypatch.setattr(module, "Trials", Scripted)
    return asked


async def check(found: Constraints, text: str, deadline_s: float | None = None) -> None:
    await found.check(Grammar("regex", text), deadline_s)


async def test_equal_grammars_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Verdict("CONSTRAINT_INVALID", "so it is")
    asked = scripted(monkeypatch, Verdict(cpu_s=0.5), bad)
    found = Constraints(demo_vocabulary())
    await asyncio.gather(*(check(found, "a") for _ in range(5)))
    await check(found, "a")
    assert asked == ["a"]
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match=r"constraint\.regex .*: so it is"):
            await check(found, "b")
    assert asked == ["a", "b"]
    registry = CollectorRegistry()
    registry.register(found)
    for error in (InvalidArgumentError("CONSTRAINT_INVALID", ""), UnavailableError("OTHER", "")):
        found.note_failure(error)
    metrics = Metrics.of(registry)
    assert metrics("chorale_data_plane_constrained_requests_total", kind="regex") == 8
    assert metrics("chorale_data_plane_constraint_trial_cpu_seconds_total") == 0.5
    failures = "chorale_data_plane_constraint_failures_total"
    assert metrics(failures, reason="CONSTRAINT_INVALID") == 1
    found.close()


async def test_what_is_no_verdict_on_the_grammar_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost, unsupported = Verdict("CONSTRAINT_TRIAL_LOST", "gone"), Verdict("CONSTRAINTS_UNSUPPORTED")
    asked = scripted(monkeypatch, lost, OSError("no process"), Verdict(), unsupported)
    found = Constraints(demo_vocabulary())
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await check(found, "a")
    await check(found, "a")
    with pytest.raises(FailedPreconditionError):
        await check(found, "b")
    assert asked == ["a", "a", "a", "b"]
    found.close()


async def test_slow_trials_hold_up_neither_the_known_nor_the_loop_and_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = threading.Event()

    def slow() -> Verdict:
        go.wait(60)
        return Verdict()

    scripted(monkeypatch, Verdict(), slow)
    monkeypatch.setattr(module, "_MAX_UNDER_WAY", 3)
    found = Constraints(demo_vocabulary())
    await check(found, "known")
    now_s = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineExceededError):
        await check(found, "slow", now_s + 0.05)
    waiting = [asyncio.create_task(check(found, f"slow{i}")) for i in range(2)]
    await asyncio.sleep(0)
    await check(found, "known")
    with pytest.raises(ResourceExhaustedError) as seen:
        await check(found, "another")
    assert seen.value.reason == "CONSTRAINTS_BUSY" and seen.value.retry_after_s
    waiting[0].cancel()
    go.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    await check(found, "slow0")
    await eventually(lambda: not found._under_way)
    found.close()


async def test_the_engines_refusals_are_counted(start_rig: StartRig) -> None:
    fail = {"code": "INVALID_ARGUMENT", "reason": "CONSTRAINT_TOO_COMPLEX", "message": "no fuel"}
    async with start_rig(FakeScript(fail_after=1, fail=fail)) as rig:
        with pytest.raises(InvalidArgumentError, match="no fuel"):
            await rig.generate(sampling=sampling(choices=["yes"]))
        assert rig.service.constraints._failures == {"CONSTRAINT_TOO_COMPLEX": 1}


async def test_what_is_closed_while_it_starts_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trials come to be after the end of who is to close them."""
    closed: list[bool] = []

    starting, go = threading.Event(), threading.Event()

    def slowly(vocabulary: Vocabulary) -> Trials:
        starting.set()
        go.wait(60)
        return Trials(vocabulary)

    monkeypatch.setattr(module, "Trials", slowly)
    close = Trials.close
    monkeypatch.setattr(Trials, "close", lambda trials: (closed.append(True), close(trials)))
    found = Constraints(demo_vocabulary())
    waiting = asyncio.create_task(check(found, grammar_of(CHOICES).text))
    await eventually(starting.is_set)
    found.close()
    go.set()
    with pytest.raises(UnavailableError):
        await waiting
    assert closed
