"""The right answers, each computed alone in an engine with room for everything."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.load.workload import FIRST_TOKEN_ID
from dataplane.channel import Adapter, Sampling, Submit
from dataplane.engine.engine import Engine

MIN_GAP = 1e-3
"""Between the two likeliest tokens, in log-probability. A batch may round otherwise than a request
alone; an answer with a closer choice in it proves nothing and is not used."""

_MAX_TRIES = 50
_MAX_WAIT_S = 60.0

Answer = tuple[list[int], list[int]]
"""Prompt, and the tokens that must follow."""


def references(
    engine: Engine,
    voices: Sequence[Adapter | None],
    *,
    num_prompts: int,
    prompt_tokens: tuple[int, int],
    num_tokens: int,
    vocab_size: int,
    seed: int,
) -> dict[str, list[Answer]]:
    """By digest, "" for the base model. The same prompts for all voices, but where a choice was too
    close. Raises: BenchError."""
    answers: dict[str, list[Answer]] = {}
    handle = 0
    for voice in voices:
        own: list[Answer] = []
        # One generator a prompt: the first tries are the same for every voice.
        for number in range(num_prompts):
            generator = random.Random(seed * 1_000_003 + number)
            for _ in range(_MAX_TRIES):
                length = generator.randint(*prompt_tokens)
                prompt = [generator.randrange(FIRST_TOKEN_ID, vocab_size) for _ in range(length)]
                handle += 1
                tokens, gap = _alone(engine, handle, voice, prompt, num_tokens)
                if gap >= MIN_GAP:
                    own.append((prompt, tokens))
                    break
            else:
                raise BenchError("REFERENCE_UNCLEAR", f"no clear answer in {_MAX_TRIES} prompts")
        answers[voice.digest if voice else ""] = own
    return answers


def _alone(
    engine: Engine, handle: int, voice: Adapter | None, prompt: list[int], num_tokens: int
) -> tuple[list[int], float]:
    sampling = Sampling(max_tokens=num_tokens, ignore_eos=True, logprobs=2)
    now_s = time.monotonic()
    engine.submit(
        Submit(handle=handle, prompt=prompt, sampling=sampling, adapter=voice, arrival_s=now_s)
    )
    tokens: list[int] = []
    gap = float("inf")
    while engine.has_work:
        result: Any = engine.step()
        if result.failures:
            raise BenchError("REFERENCE_FAILED", str(result.failures[0][1])[:500])
        for output in result.outputs:
            tokens += output.token_ids
            for each in output.logprobs:
                gap = min(gap, each.top_logprobs[0] - each.top_logprobs[1])
        if not result.outputs:
            time.sleep(0.0002)
            if time.monotonic() - now_s > _MAX_WAIT_S:
                raise BenchError("REFERENCE_FAILED", f"no answer in {_MAX_WAIT_S} s")
    return tokens, gap


def num_alike(answers: dict[str, list[Answer]]) -> int:
    """Pairs of prompt and answer that more than one voice gives: there a wrong adapter would not
    be noticed."""
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for own in answers.values():
        for prompt, tokens in own:
            key = tuple(prompt), tuple(tokens)
            seen[key] = seen.get(key, 0) + 1
    return sum(count - 1 for count in seen.values())
