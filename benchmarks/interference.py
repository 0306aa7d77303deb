"""What running streams feel of adapters that come and go beside them.

    python -m benchmarks.interference [--shape tinyllama] [--cases trickle churn] [--out DIR]

Streams of the base model decode without end in an engine of this process, and the gaps between
their tokens are taken in windows that take turns, with and without:

trickle  a large adapter (--megabytes as a file, as near as rank 256 allows) that a web server
         gives away evenly over --trickle-s seconds, then verified, packed, copied into the pool and
         stored on disk; each window ends when its request has its token and the disk has the
         file. Without: the same request under an adapter of that size that is there
churn    one request at a time, 1 token in and 1 out, under 200 adapters in turn through a pool that
         holds 20 of them and host memory that holds 40; without: as many requests under one
         adapter that stays

The verdict is on the 99th percentile of the gaps of all windows of a case.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.errors import BenchError
from benchmarks.load.provenance import processor_time, provenance
from benchmarks.models import SHAPES, Shape, write_adapter, write_model
from benchmarks.rounds import Case, Ratio, interleaved, judged, print_ratios
from benchmarks.session import adapter_at, device_name
from benchmarks.step_loop import StepLoop, settle
from benchmarks.streams import Gaps, Streams
from benchmarks.trickle_server import trickling
from dataplane.channel import Adapter, EngineOptions, Prefetch

SCHEMA = "chorale-interference-bench/1"
MAX_TRICKLE_RATIO = 1.1
MAX_CHURN_RATIO = 1.25
_MAX_RANK = 256
_MARGIN_TOKENS = 48


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
    parser.add_argument("--folder", type=Path, help="keeps model and adapters for the next run")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    settle()
    for name in ("streams", "megabytes", "rank", "adapters", "fits", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    with ExitStack() as stack:
        folder = arguments.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chorale-bench-")))
        report = run(arguments, folder)
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = f"interference-{report['shape']}-{report['device_type']}.json"
        (arguments.out / name).write_text(json.dumps(report, indent=1) + "\n")


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    shape = SHAPES[arguments.shape]
    if not (folder / "model").exists():
        write_model(folder / "model", shape)
    results: dict[str, Any] = {}
    for name in arguments.cases:
        with ExitStack() as stack:
            results[name] = CASES[name](arguments, folder, shape, stack)
    facts = results[arguments.cases[0]].pop("engine")
    for result in results.values():
        result.pop("engine", None)
    parameters = {
        key: value for key, value in vars(arguments).items() if key not in ("out", "folder")
    }
    return {
        "schema": SCHEMA,
        "benchmark": "interference",
        **provenance(),
        **parameters,
        **facts,
        "torch": torch.__version__,
        "results": results,
    }


def trickle(
    arguments: argparse.Namespace, folder: Path, shape: Shape, stack: ExitStack
) -> dict[str, Any]:
    rank = min(_MAX_RANK, max(1, (arguments.megabytes << 20) // (2 * shape.adapter_bytes(1))))
    # A new one each round: an adapter that was here before would come from memory. The last one
    # stays in the pool all the time.
    paths = [folder / f"large{number}" for number in range(arguments.rounds + 1)]
    for number, path in enumerate(paths):
        if not path.exists():
            write_adapter(path, shape, rank=rank, seed=number, dtype=torch.float32)
    nbytes = shape.adapter_bytes(rank)
    address = stack.enter_context(trickling(folder, arguments.trickle_s))
    loop = _loop(arguments, folder, stack, 3 * nbytes, host=4 * nbytes, address=address)
    stays = adapter_at(paths.pop())
    loop.first_token_s(stays, 1)
    loop.engine.direct(Prefetch(stays, "pool", pin=True))
    streams = Streams(loop, arguments.streams, 1024)
    with_it, without = Gaps(), Gaps()
    arrival_s: list[float] = []
    waiting = iter(paths)

    def quiet() -> float:
        """The same request, but under the adapter that is there."""
        until_s = time.perf_counter() + arguments.trickle_s
        loop.submit(stays, prompt_tokens=1, new_tokens=1)
        return without.add(streams.window(lambda: time.perf_counter() < until_s))

    def loaded() -> float:
        path = next(waiting)
        adapter = msgspec.structs.replace(adapter_at(path), source=f"{address}/{path.name}")
        started_s = time.perf_counter()
        seen: list[int] = []

        def note(handle: int) -> None:
            seen.append(handle)
            arrival_s.append(time.perf_counter() - started_s)

        def goes_on() -> bool:
            return not seen or adapter.digest not in loop.parts.loader.residency().disk

        loop.submit(adapter, prompt_tokens=1, new_tokens=1)
        return with_it.add(streams.window(goes_on, note))

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
        if not path.exists():
            write_adapter(path, shape, rank=arguments.rank, seed=number)
        adapters.append(adapter_at(path))
    nbytes = shape.adapter_bytes(arguments.rank)
    fits = arguments.fits * nbytes
    loop = _loop(arguments, folder, stack, fits, host=2 * fits)
    on_disk = loop.parts.loader.residency().disk
    loop.use_once([each for each in adapters if each.digest not in on_disk])
    loop.first_token_s(adapters[0], 1)
    streams = Streams(loop, arguments.streams, 1024)
    served = {"churn": 0, "one adapter": 0}
    gaps_of = {name: Gaps() for name in served}
    order = np.random.default_rng(3)
    # The second case gets as many requests as the first one came to, evenly over its time.
    pace_s = {"churn": 0.0, "one adapter": 0.25}

    def turn(name: str, choose: Callable[[], Adapter]) -> Case:
        def window() -> float:
            started_s = time.perf_counter()
            before = served[name]
            due_s = started_s
            open_handles: list[int] = []

            def goes_on() -> bool:
                nonlocal due_s
                now_s = time.perf_counter()
                is_over = now_s >= started_s + arguments.churn_s
                if not open_handles and not is_over and now_s >= due_s:
                    due_s += pace_s[name]
                    open_handles.append(loop.submit(choose(), prompt_tokens=1, new_tokens=1))
                return bool(open_handles) or not is_over

            def ended(handle: int) -> None:
                open_handles.remove(handle)
                served[name] += 1

            p99 = gaps_of[name].add(streams.window(goes_on, ended))
            if name == "churn":
                pace_s["one adapter"] = arguments.churn_s / max(1, served[name] - before)
            return p99

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
    stack: ExitStack,
    pool_adapters_bytes: int,
    *,
    host: int,
    address: str = "",
) -> StepLoop:
    """address: that adapters may come from. What came from there before is forgotten."""
    shape = SHAPES[arguments.shape]
    token_bytes = 2 * 2 * shape.num_kv_heads * shape.head_dim * shape.num_layers
    kv_bytes = (arguments.streams + 1) * (1024 + _MARGIN_TOKENS) * token_bytes
    width = 2 if arguments.dtype == "float32" else 1
    disk = folder / "disk"
    if address:
        disk = folder / "disk-of-trickle"
        shutil.rmtree(disk, ignore_errors=True)
    loop = StepLoop(
        EngineOptions(
            model_dir=str(folder / "model"),
            model_name="bench",
            device=arguments.device,
            dtype=arguments.dtype,
            pool_bytes=width * (kv_bytes + pool_adapters_bytes),
            num_threads=arguments.threads,
            host_cache_bytes=width * host,
            disk_cache_dir=str(disk),
            adapter_roots=(str(folder),),
            allowed_sources=(f"{address}/",) if address else (),
            private_hosts=("127.0.0.1",) if address else (),
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
    before = processor_time()
    interleaved(cases, rounds)
    stolen = processor_time() - before
    loop.engine.check_integrity()
    ready = loop.parts.ready
    # Of all windows together: in one there are so few steps that its P99 is its worst but one.
    p99 = {name: [each.percentile(99)] for name, each in gaps.items()}
    return {
        "gap_s": {name: each.figures() for name, each in gaps.items()},
        "ratios": judged([ratio], p99),
        "stolen_share": stolen.stolen_share,
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
            keys = ("p50", "p90", "p99", "worst")
            cells = [f"{key} {gaps[key] * 1e3:>8.2f}" for key in keys]
            windows = " ".join(f"{p99 * 1e3:.0f}" for p99 in gaps["p99_of_windows"])
            print(f"  {case:<14}{'   '.join(cells)}   P99 of windows {windows}")
        print(f"  the host took {result['stolen_share']:.1%} of the processor time away")
        print_ratios(result["ratios"])


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
