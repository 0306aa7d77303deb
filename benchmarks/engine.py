"""The engine alone, no network: what mixed adapters, mixed ranks and idle adapters cost.

    python -m benchmarks.engine [--shape small] [--concurrency 32] [--cases closed ranks idle many]
                                [--device cpu] [--tensor-parallel 2] [--out DIR]

Prints ratios of cases that take turns in one process, each with what must hold of it, and with
--out writes them as JSON with device and commit. The byte roofline of a case is base-only speed
÷ (1 + distinct adapter bytes ÷ base bytes): what is left when weights are read once a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, constrained_case, sampling_case, speculation_case
from benchmarks.errors import BenchError
from benchmarks.load.provenance import provenance
from benchmarks.models import SHAPES
from benchmarks.rounds import print_ratios
from benchmarks.session import device_name
from dataplane.engine import process_settings

SCHEMA = "chorale-engine-bench/1"
CASES = {
    "closed": cases.closed,
    "ranks": cases.ranks,
    "idle": cases.idle,
    "many": cases.many,
    "overlap": cases.overlap,
    "sampling": sampling_case.sampling,
    "constrained": constrained_case.constrained,
    "speculation": speculation_case.speculation,
}
DEFAULT_CASES = ["closed", "ranks", "idle"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=DEFAULT_CASES)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=int, default=1000, help="adapters of idle and of many")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="ranks; they share threads")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    process_settings.settle()
    for name in (
        "concurrency",
        "rank",
        "prompt_tokens",
        "new_tokens",
        "rounds",
        "idle",
        "tensor_parallel",
    ):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = run(cases.Setup.of(arguments, Path(folder)), arguments.cases)
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        others = [] if arguments.cases == DEFAULT_CASES else arguments.cases
        if arguments.tensor_parallel > 1:
            others = [*others, f"tp{arguments.tensor_parallel}"]
        name = "-".join(["engine", *others, arguments.shape, report["device_type"]]) + ".json"
        (arguments.out / name).write_text(json.dumps(report, indent=1) + "\n")


def run(setup: cases.Setup, chosen: list[str]) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    results = {name: CASES[name](setup) for name in chosen}
    ready = next(iter(results.values())).ready
    return {
        "schema": SCHEMA,
        "benchmark": "engine",
        **provenance(),
        **setup.parameters(),
        "device_type": ready.device.partition(":")[0],
        "device": device_name(ready.device),
        "dtype": ready.dtype,
        "torch": torch.__version__,
        "cases": {name: result.report() for name, result in results.items()},
    }


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['shape']}, rank {report['rank']}, {report['concurrency']} streams of"
        f" {report['prompt_tokens']} tokens in and {report['new_tokens']} out, {report['dtype']} on"
        f" {report['device']}, commit {report['commit']}"
    )
    for name, case in report["cases"].items():
        print(f"\n{name}")
        for what, rates in case["output_tokens_per_s"].items():
            print(f"{what:<56}{statistics.median(rates):>8.1f}  output tokens/s")
        for what, seconds in case.get("mean_latency_s", {}).items():
            print(f"{what:<56}{statistics.median(seconds) * 1e3:>8.1f}  ms")
        print_ratios(case["ratios"])


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
