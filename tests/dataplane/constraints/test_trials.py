"""Hostile constraints cost nobody but those who send them."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator

import psutil
import pytest

from dataplane.channel import Vocabulary
from dataplane.constraints import limits
from dataplane.constraints.trials import Trials
from tests.helpers.constraints import PERSON, demo_vocabulary, grammar

GOOD = grammar(json_schema=PERSON)
RING = "start: r0\n" + "\n".join(f'r{i}: "a" r{(i + 1) % 490} | "b"' for i in range(490))


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    opened = Trials(demo_vocabulary())
    yield opened
    opened.close()


def pid_of(trials: Trials) -> int:
    assert trials._process is not None
    return trials._process.pid


def test_a_good_one_passes_again_and_again_in_one_process(trials: Trials) -> None:
    verdicts = [trials.check(GOOD) for _ in range(3)]
    assert not any(verdict.reason for verdict in verdicts) and verdicts[0].cpu_s > 0
    before = pid_of(trials)
    assert not trials.check(grammar(choices=["a", "b"])).reason and pid_of(trials) == before


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (grammar(regex="(a"), "unclosed group"),
        (grammar(regex="(?=a)b"), "look-ahead"),
        (grammar(grammar="start: x"), "unknown name"),
        (grammar(grammar="start: a\na: b\nb: a"), "a rule leads back to itself"),
        (grammar(grammar='start: A\nA: "x" A'), "circular"),
        (grammar(grammar="start: /.*a.{20}/ & /.*b.{20}/\nA: /x/"), ""),
        (grammar(json_schema={"type": "nothing"}), "Invalid type"),
        (grammar(json_schema={"enum": []}), "Unsatisfiable"),
        (grammar(json_schema=False), "false"),
        (grammar(json_schema={"format": "color"}), "Unknown format"),
        (grammar(json_schema={"allOf": [{"$ref": "#"}]}), "a reference or a rule leads back"),
        (grammar(json_schema={"oneOf": [{"type": "string"}, {"maxLength": 3}]}), "oneOf"),
        (
            grammar(
                json_schema={"type": "object", "properties": {f"k{i}": {} for i in range(2000)}}
            ),
            "items",
        ),
    ],
)
def test_what_llguidance_refuses_is_told_and_the_process_goes_on(
    trials: Trials, hostile: str, said: str
) -> None:
    assert not trials.check(GOOD).reason
    before = pid_of(trials)
    verdict = trials.check(hostile)
    assert verdict.reason.startswith("CONSTRAINT_") and said in verdict.message, verdict
    assert pid_of(trials) == before and not trials.check(GOOD).reason


def test_what_takes_the_stack_takes_that_process_alone(trials: Trials) -> None:
    assert not trials.check(GOOD).reason
    before = pid_of(trials)
    verdict = trials.check(grammar(grammar=RING))
    assert verdict.reason == "CONSTRAINT_TOO_COMPLEX" and "stack" in verdict.message
    assert not psutil.pid_exists(before)
    assert not trials.check(GOOD).reason and pid_of(trials) != before


def unbounded(regex: str) -> str:
    """What would never come so far."""
    return json.dumps({"grammars": [{"lark_grammar": f"start: /{regex}/"}]})


def test_memory_and_time_are_bounded(trials: Trials) -> None:
    for large in (grammar(regex="a?" * 3900 + "a" * 100), unbounded("a?" * 20_000)):  # gigabytes
        assert trials.check(large).reason == "CONSTRAINT_TOO_COMPLEX"
    slow = unbounded("((a{60}){60}){60}")
    assert trials.check(slow).reason == "CONSTRAINT_TOO_COMPLEX"
    assert not trials.check(GOOD).reason


def test_the_system_enforces_the_bounds(trials: Trials) -> None:
    assert not trials.check(GOOD).reason
    process = psutil.Process(pid_of(trials))
    used = process.cpu_times()
    most_s = int(used.user + used.system) + 1 + limits.TRIAL_CPU_S
    assert 0 < process.rlimit(psutil.RLIMIT_CPU)[0] <= most_s
    most = process.memory_info().data + limits.TRIAL_BYTES
    assert all(0 < each <= most for each in process.rlimit(resource.RLIMIT_DATA))
    assert process.nice() >= 10, "it gives way to the engine"


def test_a_process_that_was_killed_is_replaced(trials: Trials) -> None:
    assert not trials.check(GOOD).reason
    psutil.Process(pid_of(trials)).kill()
    trials.check(GOOD)  # may be the one that finds it gone
    assert not trials.check(GOOD).reason


def test_a_tokenizer_that_cannot_be_used_is_told_each_time() -> None:
    broken = Vocabulary(tokenizer=b"{}", num_tokens=3, vocab_size=3, eos_token_ids=[1])
    opened = Trials(broken)
    for _ in range(2):
        assert opened.check(GOOD).reason == "CONSTRAINTS_UNSUPPORTED"
    assert opened._process is None
    opened.close()


def test_nothing_runs_after_close() -> None:
    opened = Trials(demo_vocabulary())
    assert not opened.check(GOOD).reason
    process = psutil.Process(pid_of(opened))
    opened.close()
    assert not process.is_running()
    assert opened.check(GOOD).reason == "CONSTRAINT_TRIAL_LOST"
