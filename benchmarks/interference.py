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
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.interference_cases import CASES, Plan
from benchmarks.load.provenance import provenance
from benchmarks.models import SHAPES, write_model
from benchmarks.rounds import print_ratios
from benchmarks.step_loop import StepLoop, settle
from dataplane.engine_options import EngineOptions

SCHEMA = "chorale-interference-bench/1"
MAX_TRICKLE_RATIO = 1.1
MAX_CHURN_RATIO = 1.25


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
        cases = "-".join(arguments.cases)  # or one run would overwrite another case's
        name = f"interference-{cases}-{report['shape']}-{report['device_type']}.json"
        (arguments.out / name).write_text(json.dumps(report, indent=1) + "\n")


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    shape = SHAPES[arguments.shape]
    if not (folder / "model").exists():
        write_model(folder / "model", shape)
    plan = Plan(
        shape,
        folder,
        streams=arguments.streams,
        rounds=arguments.rounds,
        megabytes=arguments.megabytes,
        trickle_s=arguments.trickle_s,
        churn_s=arguments.churn_s,
        rank=arguments.rank,
        adapters=arguments.adapters,
        fits=arguments.fits,
        width=4 if arguments.dtype == "float32" else 2,
        max_trickle=MAX_TRICKLE_RATIO,
        max_churn=MAX_CHURN_RATIO,
    )

    @contextmanager
    def make_loop(**options: Any) -> Generator[StepLoop]:
        settings = {
            "model_dir": str(folder / "model"),
            "model_name": "bench",
            "device": arguments.device,
            "dtype": arguments.dtype,
            "num_threads": arguments.threads,
            **options,
        }
        loop = StepLoop(EngineOptions(**settings), vocab_size=shape.vocab_size)
        try:
            yield loop
        finally:
            loop.stop()

    results = {name: CASES[name](plan, make_loop) for name in arguments.cases}
    engines = [result.pop("engine") for result in results.values()]
    parameters = {
        key: value for key, value in vars(arguments).items() if key not in ("out", "folder")
    }
    return {
        "schema": SCHEMA,
        "benchmark": "interference",
        **provenance(),
        **parameters,
        **engines[0],
        "torch": torch.__version__,
        "results": results,
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
