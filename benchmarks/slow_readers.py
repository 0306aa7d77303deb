"""Do clients that read slowly hold back those that do not?

    python -m benchmarks.slow_readers [--fast 100] [--slow 900] [--rounds 3] [--out DIR]

Starts `chorale up` with a random-weight model and lets 100 streams run through the gateway, alone
and beside 900 streams whose clients take one event in twenty seconds; the two take turns. Before
each measurement beside slow readers the engine has made all their tokens, so that the ratio shows
what open, unread streams cost, and not that a shared engine is shared. The slow clients are a
process of their own, on small receive windows, and share the machine's processors with everything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc

from benchmarks.errors import BenchError, PeerError
from benchmarks.fixtures import write_fixtures
from benchmarks.load.provenance import provenance
from benchmarks.models import SHAPES
from benchmarks.rounds import Ratio, interleaved, judged, print_ratios
from benchmarks.servers import chorale_server
from chorale.aio import AsyncClient
from chorale.errors import ResourceExhaustedError
from chorale.status import from_rpc_error
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceStub

SCHEMA = "chorale-slow-readers-bench/1"
MIN_RATIO = 0.9
IDLE_TIMEOUT_S = 300.0
STREAMS_PER_CONNECTION = 30
SLOW_TOKENS, SLOW_LOGPROBS = 128, 5
SLOW_PAUSE_S = 20.0
SLOW_OPTIONS = (
    ("grpc.http2.lookahead_bytes", 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
PROMPT = list(range(10, 42))


def main() -> None:
    if sys.argv[1:2] == ["hold"]:  # the process of the slow clients
        asyncio.run(_hold(sys.argv[2], int(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", type=int, default=100)
    parser.add_argument("--slow", type=int, default=900)
    parser.add_argument("--new-tokens", type=int, default=128, help="of each fast stream")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    for name in ("fast", "slow", "new_tokens", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    try:
        report = run(arguments)
    except BenchError as error:
        parser.exit(1, f"error: {error.reason}: {error.message}\n")
    print_ratios(report["ratios"])
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / "slow-readers.json"
        path.write_text(json.dumps(report, indent=1) + "\n")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        fixtures = write_fixtures(folder, SHAPES[arguments.shape], num_adapters=0, ranks=[8])
        fixtures.adapter_root.mkdir(exist_ok=True)
        with chorale_server(fixtures, folder, "--dtype=float32") as server:
            address = server.grpc_address

            def fast() -> float:
                server.check_alive()
                return asyncio.run(_tokens_per_s(address, arguments.fast, arguments.new_tokens))

            def beside_slow() -> float:
                with _slow_readers(address, arguments.slow):
                    asyncio.run(_engine_is_idle(address))
                    return fast()

            fast()  # everything is warm, and on disk, after this
            values = interleaved({"alone": fast, "beside slow": beside_slow}, arguments.rounds)
    name = f"{arguments.fast} streams beside {arguments.slow} slow readers / alone"
    return {
        "schema": SCHEMA,
        "benchmark": "slow_readers",
        **provenance(),
        "shape": arguments.shape,
        "num_fast": arguments.fast,
        "num_slow": arguments.slow,
        "new_tokens": arguments.new_tokens,
        "tokens_per_s": values,
        "ratios": judged([Ratio(name, "beside slow", "alone", at_least=MIN_RATIO)], values),
    }


async def _tokens_per_s(address: str, num_streams: int, num_tokens: int) -> float:
    async def one(client: AsyncClient) -> int:
        done = await client.complete(
            prompt_token_ids=PROMPT, max_tokens=num_tokens, ignore_eos=True, timeout=300
        )
        return len(done.token_ids)

    async with AsyncClient(address) as client:
        began_s = time.monotonic()
        counts = await asyncio.gather(*(one(client) for _ in range(num_streams)))
        return sum(counts) / (time.monotonic() - began_s)


async def _engine_is_idle(address: str) -> None:
    """Waits until the data plane has made everything that was asked for.

    Raises: PeerError when it never has."""
    deadline_s, num_idle = time.monotonic() + IDLE_TIMEOUT_S, 0
    async with AsyncClient(address) as client:
        while num_idle < 3:  # reports are up to a second old
            if time.monotonic() > deadline_s:
                raise PeerError("ENGINE_BUSY", f"the engine is busy after {IDLE_TIMEOUT_S:g} s")
            loads = [plane.load for plane in await client.data_planes()]
            busy = not loads or any(load.num_running or load.num_waiting for load in loads)
            num_idle = 0 if busy else num_idle + 1
            await asyncio.sleep(1)


@contextmanager
def _slow_readers(address: str, number: int) -> Generator[None]:
    """A process that holds `number` streams open. Raises: PeerError when it fails to."""
    command = [sys.executable, "-m", "benchmarks.slow_readers", "hold", address, str(number)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        if process.stdout.readline() != "open\n":
            raise PeerError("SLOW_READERS_FAILED", process.communicate()[1][-2000:])
        yield
        # Should one have ended meanwhile, fewer than asked for were open.
        process.stdin.close()
        told = process.stdout.readline()
        if told != f"{number} still open\n":
            raise PeerError("SLOW_READERS_ENDED", f"of {number} slow streams: {told.strip()}")
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()


async def _hold(address: str, number: int) -> None:
    """Opens the slow streams, says so, and reads them slowly until stdin ends."""
    async with _channels(address, number) as channels:
        opened: asyncio.Queue[Exception | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(_read_slowly(channels[i % len(channels)], opened))
            for i in range(number)
        ]
        for _ in tasks:
            if (error := await opened.get()) is not None:
                raise error
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(f"{sum(not task.done() for task in tasks)} still open", flush=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read_slowly(channel: grpc.aio.Channel, opened: asyncio.Queue[Exception | None]) -> None:
    stub: Any = InferenceServiceStub(channel)
    request = pb.GenerateRequest(
        prompt_token_ids=pb.TokenIds(ids=PROMPT),
        sampling=pb.SamplingParameters(
            max_tokens=SLOW_TOKENS, ignore_eos=True, logprobs=SLOW_LOGPROBS
        ),
    )
    is_open = False
    while not is_open:
        call = stub.Generate(request)
        try:
            while (await call.read()) is not grpc.aio.EOF:
                if not is_open:
                    is_open = True
                    opened.put_nowait(None)
                await asyncio.sleep(SLOW_PAUSE_S)
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
            if is_open or not isinstance(error, ResourceExhaustedError):
                opened.put_nowait(error)
                return
            await asyncio.sleep(error.retry_after_s or 1.0)  # the queue is full of slow ones


@asynccontextmanager
async def _channels(address: str, number: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    channels = [
        grpc.aio.insecure_channel(address, options=SLOW_OPTIONS)
        for _ in range(-(-number // STREAMS_PER_CONNECTION))
    ]
    try:
        yield channels
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


if __name__ == "__main__":
    main()
