"""First tokens as admission expects them, beside those that come: the whole of Chorale on this CPU.

    python -m benchmarks.expectation [--shape small] [--load 0.5 0.9 1.3] [--out DIR]

Starts `chorale up`, measures what it does with a flood of requests, and sends S-LoRA's workload at
shares of that, as clients that ask for a place themselves: Admit, then the data plane. A ticket
says when the first token is expected; the client sees when it comes, counted from its call of
Admit. The figures are expected over true.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.fixtures import Fixtures, write_fixtures
from benchmarks.load import generators
from benchmarks.load.provenance import provenance
from benchmarks.load.workload import Request, prompt_of
from benchmarks.models import SHAPES
from benchmarks.servers import chorale_server
from chorale import AsyncClient, Tokens
from chorale.v1 import admission_pb2

SCHEMA = "chorale-expectation-bench/1"
_VOCAB_SIZE = 256
_FLOOD_RATE, _FLOOD_S = 20.0, 2.0
_INPUT, _OUTPUT = (16, 256), (16, 128)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--load", type=float, nargs="+", default=[0.5, 0.9, 1.3])
    parser.add_argument("--duration", type=float, default=30.0)
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    if arguments.adapters < 1 or min(*arguments.load, arguments.duration) <= 0:
        parser.error("--adapters must be at least 1, --load and --duration more than 0")
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as name:
        folder = Path(name)
        fixtures = write_fixtures(
            folder, SHAPES[arguments.shape], num_adapters=arguments.adapters, ranks=(16,)
        )
        with chorale_server(fixtures, folder, "--dtype=bfloat16") as server:
            lines = asyncio.run(
                _measure(server.grpc_address, fixtures, arguments.load, arguments.duration)
            )
    report = {
        "schema": SCHEMA,
        "benchmark": "expectation",
        **provenance(),
        "shape": arguments.shape,
        "num_adapters": arguments.adapters,
        "duration_s": arguments.duration,
        "lines": lines,
    }
    for line in lines:
        ratio = line["expected_over_true"]
        print(
            f"load {line['load']:g}: expected over true first token: median {ratio['median']:.2f}, "
            f"P10 {ratio['p10']:.2f}, P90 {ratio['p90']:.2f}, of {line['num_requests']}"
        )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"expectation-{arguments.shape}-cpu.json"
        path.write_text(json.dumps(report, indent=1) + "\n")


async def _measure(
    address: str, fixtures: Fixtures, loads: Sequence[float], duration_s: float
) -> list[dict[str, Any]]:
    names = [path.name for path in fixtures.adapters]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(address))
        for path in fixtures.adapters:
            await client.adapters.register(path.name, str(path))
        (plane,) = await client.data_planes()
        direct = await stack.enter_async_context(AsyncClient(plane.endpoint))
        began_s = time.monotonic()
        flood = await _run(client, direct, _requests(names, _FLOOD_RATE, _FLOOD_S, 0), 0)
        rate = len(flood) / (time.monotonic() - began_s)
        return [
            _line(
                load, await _run(client, direct, _requests(names, load * rate, duration_s, at), at)
            )
            for at, load in enumerate(loads, 1)
        ]


def _requests(
    names: Sequence[str], rate: float, duration_s: float, seed: int
) -> tuple[Request, ...]:
    workload = generators.slora(
        names,
        rate=rate,
        duration_s=duration_s,
        seed=seed,
        input_tokens=_INPUT,
        output_tokens=_OUTPUT,
    )
    return workload.phases[0].requests


async def _run(
    client: AsyncClient, direct: AsyncClient, requests: Sequence[Request], seed: int
) -> list[tuple[float, float]]:
    """(expected, true) seconds of each request."""
    began_s = time.monotonic()

    async def one(request: Request) -> tuple[float, float]:
        await asyncio.sleep(began_s + (request.at_s or 0.0) - time.monotonic())
        asked_s = time.monotonic()
        place = await client.admit(request.adapter, num_prompt_tokens=request.num_prompt_tokens)
        signed = admission_pb2.SignedTicket.FromString(place.ticket)
        expected_s = admission_pb2.TicketClaims.FromString(signed.claims).expected_ttft_s
        first_s = 0.0
        stream = direct.generate(
            prompt_token_ids=prompt_of(0, request, seed=seed, vocab_size=_VOCAB_SIZE),
            ticket=place.ticket,
            max_tokens=request.num_output_tokens,
            ignore_eos=True,
        )
        async with stream as events:
            async for event in events:
                if isinstance(event, Tokens) and not first_s:
                    first_s = time.monotonic() - asked_s
        return expected_s, first_s

    return await asyncio.gather(*(one(request) for request in requests))


def _line(load: float, found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    ratios = [expected_s / true_s for expected_s, true_s in found]
    deciles = statistics.quantiles(ratios, n=10)
    return {
        "load": load,
        "num_requests": len(found),
        "expected_over_true": {
            "p10": deciles[0],
            "median": statistics.median(ratios),
            "p90": deciles[8],
        },
        "requests": [{"expected_s": each, "true_s": true_s} for each, true_s in found],
    }


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
