"""Each demo adapter answers in its own voice, on numbers that no training line showed, and
traffic of all of them at once never mixes them up."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

import chorale
from examples.demo.voices import NUMBERS, PROMPT, is_held_out
from tests.e2e.conftest import BASE, NAMES, expected
from tests.helpers.up import ChoraleUp
from tests.helpers.waiting import eventually

HELD_OUT = [number for number in NUMBERS if is_held_out(number)]
CONCURRENCY = 64


async def ask_all(address: str, jobs: list[tuple[str, int]]) -> list[str]:
    """The answers to (model, number), at most CONCURRENCY at a time."""
    gate = asyncio.Semaphore(CONCURRENCY)
    async with chorale.AsyncClient(address) as client:

        async def ask(model: str, number: int) -> str:
            async with gate:
                prompt = PROMPT.format(n=number)
                done = await client.complete(prompt, model=model, max_tokens=80)
                return done.text.strip()

        return await asyncio.gather(*(ask(*job) for job in jobs))


@pytest.mark.parametrize("name", [*NAMES, BASE])
async def test_held_out_accuracy(up: ChoraleUp, name: str) -> None:
    numbers = random.Random(name).sample(HELD_OUT, 100)
    answers = await ask_all(up.grpc_address, [(name, number) for number in numbers])
    right = sum(
        answer == expected(name, number) for number, answer in zip(numbers, answers, strict=True)
    )
    assert right >= 95, f"{name}: {right} of 100"


@pytest.mark.timeout(300)
async def test_two_thousand_mixed_requests_never_mix_voices(
    up: ChoraleUp, client: chorale.Client
) -> None:
    generator = random.Random(0)
    jobs = [(generator.choice([*NAMES, BASE]), generator.choice(NUMBERS)) for _ in range(2000)]
    started = time.perf_counter()
    answers = await ask_all(up.grpc_address, jobs)
    print(f"2000 requests in {time.perf_counter() - started:.1f} s")
    odd = [
        (job, answer) for job, answer in zip(jobs, answers, strict=True) if answer != expected(*job)
    ]
    # A voice may err, but then it errs in the same way when it is asked alone.
    alone = [(await ask_all(up.grpc_address, [job]))[0] for job, _ in odd]
    assert [answer for _, answer in odd] == alone
    assert len(odd) <= 100
    await _no_page_in_use(client)


def test_cancelled_streams_free_their_pages(up: ChoraleUp, client: chorale.Client) -> None:
    streams = []
    for index in range(20):
        stream = client.generate(
            PROMPT.format(n=index), model=NAMES[index % len(NAMES)], max_tokens=900, ignore_eos=True
        )
        next(stream)
        next(stream)
        streams.append(stream)
    for stream in streams:
        stream.close()
    asyncio.run(_no_page_in_use(client))


async def _no_page_in_use(client: chorale.Client) -> None:
    def is_idle() -> bool:  # heartbeats carry the load about once a second
        (load,) = [plane.load for plane in client.data_planes()]
        idle = (load.num_running, load.num_waiting) == (0, 0)
        return idle and load.num_available_pages == load.num_pages

    await eventually(is_idle, every_s=0.2)
