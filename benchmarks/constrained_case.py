"""What constrained answers cost: the engine benchmark's case about JSON schemas."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from benchmarks.cases import Result, Setup, measured
from benchmarks.rounds import Ratio
from benchmarks.session import Session
from chorale.v1 import inference_pb2 as pb
from dataplane.channel import Vocabulary
from dataplane.constraints.grammar import grammar_of
from dataplane.engine.pipeline import DEPTH

_STREAMS = 16
# Longer than any answer asked for here, so that all streams run to their last token.
SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "mail": {"type": "string", "pattern": "^[a-z]{1,8}@[a-z]{1,8}\\.org$"},
            "kind": {"enum": ["person", "robot", "other"]},
            "score": {"type": "number"},
            "notes": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        },
        "required": ["name", "age", "mail", "kind", "score", "notes"],
        "additionalProperties": False,
    },
}


def constrained(setup: Setup) -> Result:
    """The base model alone: greedy without a constraint against greedy and drawn answers that hold
    to a JSON schema, with steps in flight and one after another."""
    streams = [None] * min(_STREAMS, setup.concurrency)
    grammar = grammar_of(pb.Constraint(json_schema=json.dumps(SCHEMA))).text
    samplings = {
        "constrained, greedy": {"grammar": grammar},
        "constrained, drawn": {"grammar": grammar, "temperature": 0.8, "top_p": 0.95},
        "constrained, one after another": {"grammar": grammar},
    }
    with ExitStack() as stack:
        ahead, apart = (
            setup.session(stack, adapter_bytes=0, pipeline_depth=depth) for depth in (DEPTH, 1)
        )
        for session in (ahead, apart):
            session.parts.engine.use_vocabulary(_vocabulary(setup, session))
        return measured(
            setup,
            ahead.parts.ready,
            {
                "greedy": (ahead, streams),
                "constrained, greedy": (ahead, streams),
                "constrained, drawn": (ahead, streams),
                "greedy, one after another": (apart, streams),
                "constrained, one after another": (apart, streams),
            },
            [
                Ratio("constrained to greedy", "constrained, greedy", "greedy", at_least=0.85),
                Ratio("constrained and drawn to greedy", "constrained, drawn", "greedy"),
                Ratio(
                    "constrained to greedy, both one after another",
                    "constrained, one after another",
                    "greedy, one after another",
                ),
                Ratio(
                    "constrained to constrained one after another",
                    "constrained, greedy",
                    "constrained, one after another",
                ),
            ],
            {"streams": len(streams), "schema": SCHEMA},
            samplings,
        )


def _vocabulary(setup: Setup, session: Session) -> Vocabulary:
    ready = session.parts.ready
    return Vocabulary(
        tokenizer=(setup.model() / "tokenizer.json").read_bytes(),
        num_tokens=ready.vocab_size,
        vocab_size=ready.vocab_size,
        eos_token_ids=ready.eos_token_ids,
    )
