"""Masks that cost too much, or cannot be made, end their own requests and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dataplane.constraints.limits import MASK_CPU_S
from dataplane.engine import mask_threads, masks
from dataplane.errors import ConstraintError
from tests.helpers.constraints import (
    MODEL,
    demo_tokenizer,
    demo_vocabulary,
    grammar,
    holds,
    text_of,
)
from tests.helpers.engine import Rig

PROMPT = demo_tokenizer().encode("407 =").ids
GREEDY: dict[str, Any] = {"max_tokens": 64}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 9999}
LIST = {"type": "array", "items": NUMBER, "minItems": 3, "maxItems": 6}


def rig_of() -> Rig:
    rig = Rig(MODEL)
    rig.engine.use_vocabulary(demo_vocabulary())
    return rig


def test_a_grammar_that_fails_on_the_way_ends_its_own_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = rig_of()
    fill = masks.Masks._fill

    def failing(self: Any, row: Any, sequence: Any) -> None:
        if sequence.handle == 1 and sequence.num_output == 3:
            raise ConstraintError("CONSTRAINT_TOO_COMPLEX", "out of fuel")
        fill(self, row, sequence)

    monkeypatch.setattr(masks.Masks, "_fill", failing)
    for handle in (1, 2):
        rig.submit(handle, PROMPT, grammar=grammar(json_schema=LIST), **GREEDY)
    rig.run()
    assert isinstance(rig.failed[1], ConstraintError) and len(rig.tokens[1]) == 3
    assert rig.finished[2] == "stop" and holds(LIST, json.loads(text_of(rig.tokens[2])))


@pytest.mark.parametrize(
    ("num_heavy", "mask_s", "most_tokens"), [(1, 30.0, 3), (1, 0.02, 12), (4, 0.03, 8)]
)
def test_masks_that_take_too_long_end_their_requests_and_no_others(
    monkeypatch: pytest.MonkeyPatch, num_heavy: int, mask_s: float, most_tokens: int
) -> None:
    used_s = 0.0
    fill = masks.Masks._fill

    def heavy(self: Any, row: Any, sequence: Any) -> None:
        nonlocal used_s
        fill(self, row, sequence)
        used_s += mask_s if sequence.handle else MASK_CPU_S

    monkeypatch.setattr(masks.Masks, "_fill", heavy)
    monkeypatch.setattr(masks.time, "thread_time", lambda: used_s)
    monkeypatch.setattr(mask_threads, "num_threads", lambda: 1)  # one clock for all
    rig = rig_of()
    # Or a slow machine would give the grammars their share of the time that it takes.
    monkeypatch.setattr(rig.engine._constrained._masks, "_clock", lambda: 0.0)
    for handle in range(num_heavy + 1):
        rig.submit(handle, PROMPT, grammar=grammar(regex="[0-9 ]{40,}"), **GREEDY)
    rig.run()
    assert 0 in rig.finished and sorted(rig.failed) == list(range(1, num_heavy + 1))
    for handle, error in rig.failed.items():
        assert isinstance(error, ConstraintError) and error.reason == "CONSTRAINT_TOO_COMPLEX"
        assert len(rig.tokens.get(handle, ())) <= most_tokens
