"""The first token under an adapter that is in the pool, in host memory, on disk.

    python -m benchmarks.cold_start [--shape tinyllama] [--rank 16] [--rounds 5] [--out DIR]

One engine, no network; the three cases take turns. From disk the files are read anew: the page
cache is told to forget them. Prints where the time went (each a median): queue: waiting for a turn
to load; read: the raw read of the same bytes; verify: the digest, as far as it outlasts those two
beside which it runs: parse, the checks of all values, and convert, into pool layout; copy: into
pages between steps; wait: in the forward pass, for layers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.load.provenance import provenance
from benchmarks.models import SHAPES, write_adapter, write_model
from benchmarks.rounds import Ratio, interleaved, judged, print_ratios
from benchmarks.session import adapter_at, device_name
from benchmarks.step_loop import StepLoop, settle
from dataplane.channel import Adapter
from dataplane.engine_options import EngineOptions

SCHEMA = "chorale-cold-start-bench/1"
MAX_HOST_RATIO = 1.05
MAX_DISK_RATIO = 1.25
PARTS = ("queue", "read", "verify", "parse", "convert", "copy", "wait")
_POOL_ADAPTERS = 4  # the pool has room for so many, and for the prompt


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    settle()
    if min(arguments.rank, arguments.prompt_tokens, arguments.rounds) < 1:
        parser.error("--rank, --prompt-tokens and --rounds must be at least 1")
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = measure(arguments, Path(folder))
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = f"cold-start-{report['shape']}-{report['device_type']}.json"
        (arguments.out / name).write_text(json.dumps(report, indent=1) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    shape = SHAPES[arguments.shape]
    write_model(folder / "model", shape)
    write_adapter(folder / "adapter", shape, rank=arguments.rank, seed=1)
    adapter_bytes = shape.adapter_bytes(arguments.rank)
    loop = StepLoop(
        EngineOptions(
            model_dir=str(folder / "model"),
            model_name="bench",
            device=arguments.device,
            dtype=arguments.dtype,
            pool_bytes=(256 << 20) + 2 * _POOL_ADAPTERS * adapter_bytes,
            num_threads=arguments.threads,
            host_cache_bytes=(64 << 20) + 4 * adapter_bytes,
            disk_cache_dir=str(folder / "disk"),
            adapter_roots=(str(folder),),
        ),
        vocab_size=shape.vocab_size,
    )
    try:
        return _measure(arguments, loop, adapter_at(folder / "adapter"), folder / "disk")
    finally:
        loop.stop()


class _Cases:
    """Each turn returns the seconds to the first token, and notes its parts."""

    def __init__(self, loop: StepLoop, adapter: Adapter, disk: Path, prompt_tokens: int) -> None:
        self._loop = loop
        self._adapter = adapter
        self._files = [path for path in (disk / adapter.digest).iterdir() if path.is_file()]
        self._prompt_tokens = prompt_tokens
        self.parts: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.raw_read_s: list[float] = []
        self._copy_s = self._wait_s = 0.0
        resident: Any = loop.engine._resident
        loop.time_calls(resident.copier, "advance", self._add_copy)
        make = resident.waiter

        def waiter(digests: Any) -> Any:
            wait = make(digests)
            if wait is None:
                return None

            def timed(layer: int) -> None:
                before_s = time.perf_counter()
                wait(layer)
                self._wait_s += time.perf_counter() - before_s

            return timed

        resident.waiter = waiter

    def warm(self) -> float:
        self._loop.first_token_s(self._adapter, 1)
        return self._turn("warm")

    def host(self) -> float:
        self._loop.first_token_s(self._adapter, 1)
        self._loop.forget_in_pool()
        return self._turn("host")

    def disk(self) -> float:
        self._loop.forget_in_pool()
        self._loop.forget_in_host(self._adapter)
        self._forget_pages()
        started_s = time.perf_counter()
        for path in self._files:
            path.read_bytes()
        raw_s = time.perf_counter() - started_s
        self.raw_read_s.append(raw_s)
        self._forget_pages()
        seconds = self._turn("disk")
        timings = self._loop.parts.loader.recent_timings()[-1]
        if timings.tier != "disk":
            raise BenchError("NOT_FROM_DISK", f"the adapter came from its {timings.tier}")
        parts = self.parts["disk"]
        parts["queue"].append(timings.queue_s)
        parts["read"].append(raw_s)
        parts["verify"].append(max(0.0, timings.read_s - raw_s))
        parts["parse"].append(timings.parse_s)
        parts["convert"].append(timings.build_s)
        return seconds

    def _turn(self, case: str) -> float:
        self._copy_s = self._wait_s = 0.0
        seconds = self._loop.first_token_s(self._adapter, self._prompt_tokens)
        self.parts[case]["copy"].append(self._copy_s)
        self.parts[case]["wait"].append(self._wait_s)
        return seconds

    def _add_copy(self, seconds: float) -> None:
        self._copy_s += seconds

    def _forget_pages(self) -> None:
        for path in self._files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _measure(
    arguments: argparse.Namespace, loop: StepLoop, adapter: Adapter, disk: Path
) -> dict[str, Any]:
    # The kernels and the allocator are warm, and the adapter is on disk, after this.
    for _ in range(2):
        loop.first_token_s(adapter, arguments.prompt_tokens)
    loop.wait_on_disk(adapter)
    cases = _Cases(loop, adapter, disk, arguments.prompt_tokens)
    seconds = interleaved(
        {"warm": cases.warm, "host": cases.host, "disk": cases.disk}, arguments.rounds
    )
    seconds["disk less the raw read"] = [
        max(0.0, whole - raw) for whole, raw in zip(seconds["disk"], cases.raw_read_s, strict=True)
    ]
    loop.forget_in_pool()
    loop.check_empty()
    ready = loop.parts.ready
    return {
        "schema": SCHEMA,
        "benchmark": "cold_start",
        **provenance(),
        "shape": arguments.shape,
        "rank": arguments.rank,
        "prompt_tokens": arguments.prompt_tokens,
        "adapter_bytes": SHAPES[arguments.shape].adapter_bytes(arguments.rank),
        "device_type": ready.device.partition(":")[0],
        "device": device_name(ready.device),
        "dtype": ready.dtype,
        "torch": torch.__version__,
        "first_token_s": seconds,
        "raw_read_s": cases.raw_read_s,
        "parts_s": {case: dict(parts) for case, parts in cases.parts.items()},
        "ratios": judged(
            [
                Ratio("from host memory to warm", "host", "warm", at_most=MAX_HOST_RATIO),
                Ratio(
                    "from disk, less the raw read, to warm",
                    "disk less the raw read",
                    "warm",
                    at_most=MAX_DISK_RATIO,
                ),
            ],
            seconds,
        ),
    }


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['shape']}, rank {report['rank']}, {report['prompt_tokens']} prompt tokens,"
        f" {report['dtype']} on {report['device']}, commit {report['commit']}"
    )
    print(f"{'ms':<6}{'first token':>12}" + "".join(f"{part:>9}" for part in PARTS))
    for case in ("warm", "host", "disk"):
        parts = report["parts_s"][case]
        cells = [
            f"{statistics.median(parts[part]) * 1e3:>9.2f}" if part in parts else f"{'':>9}"
            for part in PARTS
        ]
        median = statistics.median(report["first_token_s"][case])
        print(f"{case:<6}{median * 1e3:>12.2f}" + "".join(cells))
    print_ratios(report["ratios"])


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
