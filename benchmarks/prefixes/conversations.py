"""Conversations as prompts: each turn has all of those before it, answers included."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FIRST_ID = 3


@dataclass(frozen=True)
class Turn:
    """at_s: from the start of the run. prompt: all of it; an answer's tokens are 0."""

    at_s: float
    conversation: int
    prompt: tuple[int, ...]
    num_output: int


@dataclass(frozen=True)
class Traffic:
    """Numbers of tokens are drawn between two bounds. gap_s: mean time from a turn to the next one
    of its conversation, beside `least_gap_s`, in which its answer is made."""

    num_systems: int = 8
    system_tokens: int = 512
    num_turns: int = 5
    user_tokens: tuple[int, int] = (32, 192)
    output_tokens: tuple[int, int] = (32, 160)
    least_gap_s: float = 10.0
    gap_s: float = 10.0
    vocab_size: int = 32000


def conversations(traffic: Traffic, rate: float, duration_s: float, seed: int) -> list[Turn]:
    """All turns in order. rate: turns a second, when as many conversations end as begin."""
    draw = random.Random(seed)
    ids = _ids(draw, traffic.vocab_size)
    systems = [ids(traffic.system_tokens) for _ in range(traffic.num_systems)]
    turns: list[Turn] = []
    at_s, number = 0.0, 0
    while (at_s := at_s + draw.expovariate(rate / traffic.num_turns)) < duration_s:
        number += 1
        turns += _conversation(traffic, draw, at_s, number, draw.choice(systems))
    return sorted((each for each in turns if each.at_s < duration_s), key=lambda each: each.at_s)


def _conversation(
    traffic: Traffic, draw: random.Random, at_s: float, number: int, system: Sequence[int]
) -> list[Turn]:
    ids = _ids(draw, traffic.vocab_size)
    prompt, turns = list(system), list[Turn]()
    for _ in range(traffic.num_turns):
        prompt += ids(draw.randint(*traffic.user_tokens))
        num_output = draw.randint(*traffic.output_tokens)
        turns.append(Turn(at_s, number, tuple(prompt), num_output))
        prompt += [0] * num_output
        at_s += traffic.least_gap_s + draw.expovariate(1 / traffic.gap_s)
    return turns


def _ids(draw: random.Random, vocab_size: int) -> Callable[[int], list[int]]:
    return lambda count: [draw.randrange(FIRST_ID, vocab_size) for _ in range(count)]
