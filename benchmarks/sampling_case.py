"""What choosing tokens costs: the engine benchmark's case about sampling."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.cases import Result, Setup, measured
from benchmarks.rounds import Ratio

SAMPLINGS = {
    "temperature": {"temperature": 0.8},
    "temperature and top_p": {"temperature": 0.8, "top_p": 0.95},
    "temperature and top_k": {"temperature": 0.8, "top_k": 50},
    "greedy with penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.1},
    "all filters and penalties": {
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
    },
}


def sampling(setup: Setup) -> Result:
    """The base model alone: the likeliest tokens against each way of choosing others."""
    with ExitStack() as stack:
        session = setup.session(stack, adapter_bytes=0)
        streams = [None] * setup.concurrency
        return measured(
            setup,
            session.parts.ready,
            dict.fromkeys(("greedy", *SAMPLINGS), (session, streams)),
            [Ratio(f"{name} to greedy", name, "greedy", at_least=0.95) for name in SAMPLINGS],
            {"samplings": SAMPLINGS},
            SAMPLINGS,
        )
