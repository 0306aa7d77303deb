"""Conversations over real data planes, by a client that asks for places itself."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.prefixes.conversations import FIRST_ID, Traffic
from chorale import AsyncClient, Finished, Tokens

WITHOUT, WITH = "without", "with"


async def rounds(
    client: AsyncClient, traffic: Traffic, *, num_rounds: int, num_at_once: int
) -> dict[str, Any]:
    """Rounds without and with prefixes in turn; each has system prompts and conversations of its
    own, of which `num_at_once` run at a time."""
    endpoints = {each.data_plane_id: each.endpoint for each in await client.data_planes()}
    planes = {name: AsyncClient(endpoint) for name, endpoint in endpoints.items()}
    try:
        found: dict[str, list[dict[str, float]]] = {WITHOUT: [], WITH: []}
        await _round(client, planes, traffic, WITHOUT, num_at_once, 0)  # measures steps
        for number in range(2 * num_rounds):
            mode = (WITHOUT, WITH)[number % 2]
            figures = await _round(client, planes, traffic, mode, num_at_once, number + 1)
            found[mode].append(figures)
    finally:
        for plane in planes.values():
            await plane.close()
    pairs = list(zip(found[WITHOUT], found[WITH], strict=True))
    return {
        "rounds": [{WITHOUT: old, WITH: new} for old, new in pairs],
        "cached_share": {
            mode: statistics.median(each["cached_share"] for each in lines)
            for mode, lines in found.items()
        },
        "mean_ttft_ratios": [new["mean_ttft_s"] / old["mean_ttft_s"] for old, new in pairs],
    }


async def _round(
    client: AsyncClient,
    planes: Mapping[str, AsyncClient],
    traffic: Traffic,
    mode: str,
    num_at_once: int,
    seed: int,
) -> dict[str, float]:
    draw = random.Random(seed)
    systems = [_ids(draw, traffic, traffic.system_tokens) for _ in range(traffic.num_systems)]
    answers = await asyncio.gather(
        *(
            _conversation(client, planes, traffic, mode, systems[at % len(systems)], seed * 97 + at)
            for at in range(num_at_once)
        )
    )
    turns = [turn for each in answers for turn in each]
    return {
        "num_turns": len(turns),
        "cached_share": sum(turn[1] for turn in turns) / sum(turn[2] for turn in turns),
        "mean_ttft_s": statistics.fmean(turn[0] for turn in turns),
    }


async def _conversation(
    client: AsyncClient,
    planes: Mapping[str, AsyncClient],
    traffic: Traffic,
    mode: str,
    system: list[int],
    seed: int,
) -> list[tuple[float, int, int]]:
    """Of each turn the seconds to its first token, its prompt's cached tokens, and all of them."""
    draw, prompt, turns = random.Random(seed), list(system), list[tuple[float, int, int]]()
    for _ in range(traffic.num_turns):
        await asyncio.sleep(traffic.least_gap_s + draw.expovariate(1 / traffic.gap_s))
        prompt += _ids(draw, traffic, draw.randint(*traffic.user_tokens))
        began_s, first_s = time.monotonic(), 0.0
        if mode == WITH:
            place = await client.admit(prompt_token_ids=prompt)
        else:
            place = await client.admit(num_prompt_tokens=len(prompt))
        stream = planes[place.data_plane_id].generate(
            prompt_token_ids=prompt,
            ticket=place.ticket,
            max_tokens=draw.randint(*traffic.output_tokens),
            ignore_eos=True,
        )
        answer: list[int] = []
        num_cached = 0
        async with stream as events:
            async for event in events:
                if isinstance(event, Tokens):
                    first_s = first_s or time.monotonic() - began_s
                    answer += event.token_ids
                elif isinstance(event, Finished):
                    num_cached = event.num_cached_tokens
        turns.append((first_s, num_cached, len(prompt)))
        prompt += answer
    return turns


def _ids(draw: random.Random, traffic: Traffic, count: int) -> list[int]:
    return [draw.randrange(FIRST_ID, traffic.vocab_size) for _ in range(count)]
