"""What is sent: requests, grouped in phases that run one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FIRST_TOKEN_ID = 16
"""Below it, tokenizers keep their special tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """`adapter` is a name, "" the base model. `at_s`: when to send it, in seconds after the phase's
    start; None in a closed loop."""

    index: int
    adapter: str
    num_prompt_tokens: int
    num_output_tokens: int
    at_s: float | None = None


@dataclass(frozen=True)
class Phase:
    """concurrency: requests under way at any time; 0 is an open loop, each sent at its `at_s`.

    counted: whether it is part of the result, or only warms up.
    """

    name: str
    requests: tuple[Request, ...]
    concurrency: int = 0
    counted: bool = True


@dataclass(frozen=True)
class Workload:
    """`parameters` is everything that the generator was given, for the report."""

    name: str
    phases: tuple[Phase, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


def prompt_of(phase: int, request: Request, *, seed: int, vocab_size: int) -> list[int]:
    """Random token ids, the same for the same arguments; no two requests share a prefix."""
    generator = np.random.default_rng((seed, phase, request.index))
    ids = generator.integers(FIRST_TOKEN_ID, vocab_size, size=request.num_prompt_tokens)
    return ids.tolist()
