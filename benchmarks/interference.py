"""What running streams feel of adapters that come and go beside them.

    python -m benchmarks.interference [--shape tinyllama] [--cases trickle churn] [--out DIR]

Streams of the base model decode without end in an engine of this process, and the gaps between
their tokens are taken in windows that take turns, with and without:

trickle  a large adapter (--megabytes as a file, as near as rank 256 allows) that its source gives
         away evenly over --trickle-s seconds, then parsed, packed and copied into the pool; each
         window ends when its request has its token
churn    one request at a time, 1 token in and 1 out, under 200 adapters in turn through a pool that
         holds 20 of them and host memory that holds 40; without: the same requests under one
         adapter that stays

The verdict is on the 99th percentile of the gaps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.errors import BenchError
from benchmarks.load.provenance import provenance
from benchmarks.models import SHAPES, Shape, write_adapter, write_model
from benchmarks.rounds import Case, Ratio, interleaved, judged, print_ratios
from benchmarks.session import adapter_at, device_name
from benchmarks.step_loop import StepLoop
from dataplane.channel import Adapter, EngineOptions
from storage.files import AdapterFiles
from storage.sources import ANYBODY, Access

SCHEMA = "chorale-interference-bench/1"
MAX_TRICKLE_RATIO = 1.1
MAX_CHURN_RATIO = 1.25
_MAX_RANK = 256
_PROMPT_TOKENS = 32
_TRICKLE_PIECES_PER_S = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=500, help="of the trickling file")
    parser.add_argument("--trickle-s", type=float, default=10.0)
    parser.add_argument("--churn-s", type=float, default=10.0, help="length of a churn window")
    parser.add_argument("--rank", type=int, default=16, help="of the churning adapters")
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--fits", type=int, default=20, help="of them, in the pool")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    for name in ("streams", "megabytes", "rank", "adapters", "fits", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = run(arguments, Path(folder))
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = f"interference-{report['shape']}-{report['device_type']}.json"
        (arguments.out / name).write_text(json.dumps(report, indent=1) + "\n")


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    shape = SHAPES[arguments.shape]
    write_model(folder / "model", shape)
    results: dict[str, Any] = {}
    for name in arguments.cases:
        with ExitStack() as stack:
            results[name] = CASES[name](arguments, folder, shape, stack)
    facts = results[arguments.cases[0]].pop("engine")
    for result in results.values():
        result.pop("engine", None)
    parameters = {key: value for key, value in vars(arguments).items() if key not in ("out",)}
    return {
        "schema": SCHEMA,
        "benchmark": "interference",
        **provenance(),
        **parameters,
        **facts,
        "torch": torch.__version__,
        "results": results,
    }


@dataclass
class Gaps:
    """Seconds between the tokens of each stream, by window."""

    p50: list[float] = field(default_factory=list[float])
    p99: list[float] = field(default_factory=list[float])
    worst: list[float] = field(default_factory=list[float])

    def add(self, gaps: list[float]) -> float:
        """Notes a window; its 99th percentile. Raises: BenchError when it has too few tokens."""
        if len(gaps) < 20:
            raise BenchError("WINDOW_TOO_SHORT", f"{len(gaps)} tokens in a window; make it longer")
        self.p50.append(float(np.percentile(gaps, 50)))
        self.p99.append(float(np.percentile(gaps, 99)))
        self.worst.append(max(gaps))
        return self.p99[-1]


class _Streams:
    """Endless streams: one that reaches its end is replaced, and its first gap not counted."""

    def __init__(self, loop: StepLoop, num_streams: int, new_tokens: int) -> None:
        self._loop = loop
        self._new_tokens = new_tokens
        self._last_s: dict[int, float | None] = {}
        for _ in range(num_streams):
            self._begin()
        loop.run_until(lambda _: self._all_decode(), 120.0)

    def window(
        self, goes_on: Callable[[], bool], on_token: Callable[[int], None] | None = None
    ) -> list[float]:
        """Steps while `goes_on`; the gaps. on_token: told of the others' tokens."""
        gaps: list[float] = []
        for handle in self._last_s:
            self._last_s[handle] = None
        while goes_on():
            self._turn(gaps, on_token)
        return gaps

    def _all_decode(self) -> bool:
        self._turn([], None)
        return all(last_s is not None for last_s in self._last_s.values())

    def _turn(self, gaps: list[float], on_token: Callable[[int], None] | None) -> None:
        outputs = self._loop.step()
        now_s = time.perf_counter()
        for output in outputs:
            if output.handle not in self._last_s:
                if on_token is not None:
                    on_token(output.handle)
                continue
            last_s = self._last_s[output.handle]
            if last_s is not None:
                gaps.append(now_s - last_s)
            self._last_s[output.handle] = now_s
            if output.finish:
                del self._last_s[output.handle]
                self._begin()

    def _begin(self) -> None:
        handle = self._loop.submit(None, prompt_tokens=_PROMPT_TOKENS, new_tokens=self._new_tokens)
        self._last_s[handle] = None


class _SlowSource:
    """Reads a directory's files evenly over `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        path = Path(uri)
        config = await asyncio.to_thread((path / "adapter_config.json").read_bytes)
        pieces: list[bytes] = []
        with (path / "adapter_model.safetensors").open("rb") as file:
            size = (path / "adapter_model.safetensors").stat().st_size
            count = max(1, int(self._seconds * _TRICKLE_PIECES_PER_S))
            for _ in range(count):
                await asyncio.sleep(self._seconds / count)
                pieces.append(await asyncio.to_thread(file.read, -(-size // count)))
        weights = await asyncio.to_thread(b"".join, pieces)
        return AdapterFiles(config=config, weights=weights, uri=uri)


def trickle(
    arguments: argparse.Namespace, folder: Path, shape: Shape, stack: ExitStack
) -> dict[str, Any]:
    rank = min(_MAX_RANK, max(1, (arguments.megabytes << 20) // (2 * shape.adapter_bytes(1))))
    # A new one each round: an adapter that was here before would come from memory.
    adapters: list[Adapter] = []
    for number in range(arguments.rounds):
        path = folder / f"large{number}"
        write_adapter(path, shape, rank=rank, seed=number, dtype=torch.float32)
        adapters.append(adapter_at(path))
    nbytes = shape.adapter_bytes(rank)
    loop = _loop(arguments, folder, shape, stack, pool_adapters_bytes=2 * nbytes, host=3 * nbytes)
    tiers: Any = loop.parts.loader._tiers
    tiers._router = _SlowSource(arguments.trickle_s)
    streams = _Streams(loop, arguments.streams, 1024)
    with_it, without = Gaps(), Gaps()
    arrival_s: list[float] = []
    waiting = iter(adapters)

    def quiet() -> float:
        until_s = time.perf_counter() + arguments.trickle_s
        return without.add(streams.window(lambda: time.perf_counter() < until_s))

    def loaded() -> float:
        started_s = time.perf_counter()
        seen: list[int] = []
        handle = loop.submit(next(waiting), prompt_tokens=1, new_tokens=1)
        gaps = streams.window(lambda: handle not in seen, seen.append)
        arrival_s.append(time.perf_counter() - started_s)
        return with_it.add(gaps)

    return _judged(
        loop,
        {"trickle": loaded, "quiet": quiet},
        {"trickle": with_it, "quiet": without},
        Ratio("P99 gap with a trickling adapter", "trickle", "quiet", at_most=MAX_TRICKLE_RATIO),
        arguments.rounds,
        {
            "rank": rank,
            "file_bytes": 2 * nbytes,
            "pool_bytes_of_adapter": nbytes,
            "first_token_after_s": arrival_s,
        },
    )


def churn(
    arguments: argparse.Namespace, folder: Path, shape: Shape, stack: ExitStack
) -> dict[str, Any]:
    adapters: list[Adapter] = []
    for number in range(arguments.adapters):
        path = folder / f"churn{number}"
        write_adapter(path, shape, rank=arguments.rank, seed=number)
        adapters.append(adapter_at(path))
    nbytes = shape.adapter_bytes(arguments.rank)
    fits = arguments.fits * nbytes
    loop = _loop(arguments, folder, shape, stack, pool_adapters_bytes=fits, host=2 * fits)
    loop.use_once(adapters)
    streams = _Streams(loop, arguments.streams, 1024)
    served = {"churn": 0, "one adapter": 0}
    gaps_of = {name: Gaps() for name in served}
    order = np.random.default_rng(3)

    def turn(name: str, choose: Callable[[], Adapter]) -> Case:
        def window() -> float:
            until_s = time.perf_counter() + arguments.churn_s
            open_handles: list[int] = []

            def goes_on() -> bool:
                if not open_handles and time.perf_counter() < until_s:
                    open_handles.append(loop.submit(choose(), prompt_tokens=1, new_tokens=1))
                return bool(open_handles)

            def ended(handle: int) -> None:
                open_handles.remove(handle)
                served[name] += 1

            return gaps_of[name].add(streams.window(goes_on, ended))

        return window

    return _judged(
        loop,
        {
            "churn": turn("churn", lambda: adapters[int(order.integers(len(adapters)))]),
            "one adapter": turn("one adapter", lambda: adapters[0]),
        },
        gaps_of,
        Ratio("P99 gap beside churn", "churn", "one adapter", at_most=MAX_CHURN_RATIO),
        arguments.rounds,
        {"requests": served, "bytes_of_adapter": nbytes},
    )


CASES = {"trickle": trickle, "churn": churn}


def _loop(
    arguments: argparse.Namespace,
    folder: Path,
    shape: Shape,
    stack: ExitStack,
    *,
    pool_adapters_bytes: int,
    host: int,
) -> StepLoop:
    token_bytes = 2 * 2 * shape.num_kv_heads * shape.head_dim * shape.num_layers
    kv_bytes = (arguments.streams + 1) * (1024 + _PROMPT_TOKENS + 16) * token_bytes
    width = 2 if arguments.dtype == "float32" else 1
    loop = StepLoop(
        EngineOptions(
            model_dir=str(folder / "model"),
            model_name="bench",
            device=arguments.device,
            dtype=arguments.dtype,
            pool_bytes=width * (kv_bytes + pool_adapters_bytes),
            num_threads=arguments.threads,
            host_cache_bytes=width * host,
            disk_cache_dir=str(folder / "disk"),
            adapter_roots=(str(folder),),
        ),
        vocab_size=shape.vocab_size,
    )
    stack.callback(loop.stop)
    return loop


def _judged(
    loop: StepLoop,
    cases: dict[str, Case],
    gaps: dict[str, Gaps],
    ratio: Ratio,
    rounds: int,
    facts: dict[str, Any],
) -> dict[str, Any]:
    p99 = interleaved(cases, rounds)
    loop.engine.check_integrity()
    ready = loop.parts.ready
    return {
        "gap_s": {
            name: {"p50": each.p50, "p99": each.p99, "worst": each.worst}
            for name, each in gaps.items()
        },
        "ratios": judged([ratio], p99),
        **facts,
        "engine": {
            "device_type": ready.device.partition(":")[0],
            "device": device_name(ready.device),
            "dtype": ready.dtype,
        },
    }


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['shape']}, {report['streams']} streams, {report['dtype']} on"
        f" {report['device']}, commit {report['commit']}"
    )
    for name, result in report["results"].items():
        print(f"\n{name}: gaps between tokens, ms")
        for case, gaps in result["gap_s"].items():
            cells = [
                f"{key} {statistics.median(values) * 1e3:>8.2f}" for key, values in gaps.items()
            ]
            print(f"  {case:<14}{'   '.join(cells)}")
        print_ratios(result["ratios"])


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
