"""The same work by transformers and peft, in turns with Chorale's engine.

    python -m benchmarks.peft_baseline [--shape small] [--rounds 3] [--out DIR]

peft serves adapters in two ways: one batch whose rows name their adapters (`adapter_names`), here
of 8, and one request after the other with `set_adapter` between. Beside them run transformers' base
model in batches of 8, and Chorale's engine with all streams at once, all adapters different, and
base only. peft has a process of its own; one dtype, as many threads, the same fixtures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Setup
from benchmarks.load.provenance import provenance
from benchmarks.models import SHAPES
from benchmarks.peft_model import peft_process
from benchmarks.rounds import Ratio, interleaved, judged, print_ratios
from benchmarks.session import device_name
from dataplane.engine import process_settings

SCHEMA = "chorale-peft-baseline/1"
PEFT_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--concurrency", type=int, default=32, help="Chorale's streams")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    process_settings.settle()
    if min(arguments.rank, arguments.prompt_tokens, arguments.new_tokens, arguments.rounds) < 1:
        parser.error("--rank, --prompt-tokens, --new-tokens and --rounds must be at least 1")
    if arguments.concurrency < PEFT_BATCH:
        parser.error(f"--concurrency must be at least {PEFT_BATCH}, peft's batch")
    arguments.device, arguments.idle = "cpu", 0
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = run(Setup.of(arguments, Path(folder)))
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"peft-{arguments.shape}.json").write_text(
            json.dumps(report, indent=1) + "\n"
        )


def run(setup: Setup) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    adapters = setup.adapters("peft", [setup.rank] * setup.concurrency)
    adapter_bytes = len(adapters) * setup.shape.adapter_bytes(setup.rank)
    with ExitStack() as stack:
        session = setup.session(stack, adapter_bytes=adapter_bytes)
        peft = stack.enter_context(
            peft_process(
                setup.model(),
                adapters[:PEFT_BATCH],
                dtype=getattr(torch, setup.dtype),
                vocab_size=setup.shape.vocab_size,
                num_threads=setup.num_threads,
            )
        )
        streams = setup.concurrency
        names = [adapter.name for adapter in adapters[:PEFT_BATCH]]
        size = (setup.prompt_tokens, setup.new_tokens)
        tokens = PEFT_BATCH * setup.new_tokens
        turns = {
            "chorale, all different": setup.turn(session, adapters, []),
            "chorale, base only": setup.turn(session, [None] * streams, []),
            "peft, mixed batch of 8": _rate(tokens, lambda: peft.mixed(names, *size)),
            "peft, switching": _rate(tokens, lambda: peft.switching(names, *size)),
            "transformers, base only, batch of 8": _rate(
                tokens, lambda: peft.base(PEFT_BATCH, *size)
            ),
        }
        rates = warm_and_run(turns, setup.rounds)
        promised = setup.is_promised
        ratios = [
            Ratio(
                "chorale to peft's mixed batch of 8",
                "chorale, all different",
                "peft, mixed batch of 8",
                at_least=4.0 if promised else None,
            ),
            Ratio(
                "chorale to peft switching",
                "chorale, all different",
                "peft, switching",
                at_least=15.0 if promised else None,
            ),
            Ratio(
                "chorale's base only to transformers'",
                "chorale, base only",
                "transformers, base only, batch of 8",
            ),
        ]
        return {
            "schema": SCHEMA,
            "benchmark": "peft_baseline",
            **provenance(),
            **setup.parameters(),
            "device": device_name("cpu"),
            "torch": torch.__version__,
            "output_tokens_per_s": rates,
            "ratios": judged(ratios, rates),
        }


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['shape']}, rank {report['rank']}, {report['prompt_tokens']} tokens in and"
        f" {report['new_tokens']} out, {report['dtype']} on {report['device']}, commit"
        f" {report['commit']}"
    )
    for name, rates in report["output_tokens_per_s"].items():
        print(f"{name:<56}{statistics.median(rates):>8.1f}  output tokens/s")
    print_ratios(report["ratios"])


def warm_and_run(turns: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """One turn of each that does not count, then `rounds` interleaved."""
    for turn in turns.values():
        turn()
    return interleaved(turns, rounds)


def _rate(num_tokens: int, work: Callable[[], float]) -> Callable[[], float]:
    """work: returns its seconds."""
    return lambda: num_tokens / work()


if __name__ == "__main__":
    main()
