"""Latency of single requests under many adapters in turn, beside transformers and peft.

    python -m benchmarks.peft_truefoundry [--shape small] [--adapters 100] [--rounds 20] [--out DIR]

`truefoundry`: 70 tokens in, 10 out, one request at a time, adapters in turn. Base only, one and
--adapters adapters, by Chorale's engine and by peft, which holds all of them in memory and switches
with `set_adapter`, in a process of its own. One dtype, as many threads, the same fixtures; no
network on either side. Each of Chorale's adapters was used once before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.cases import Setup
from benchmarks.load.provenance import provenance
from benchmarks.models import SHAPES
from benchmarks.peft_baseline import warm_and_run
from benchmarks.peft_model import PeftProcess, peft_process
from benchmarks.rounds import Ratio, judged, print_ratios
from benchmarks.session import Session, device_name
from dataplane.channel import Adapter
from dataplane.engine import process_settings

SCHEMA = "chorale-peft-truefoundry/1"
PROMPT_TOKENS, NEW_TOKENS = 70, 10
MAX_TO_BASE = 1.15  # of 8 adapters on `small`
MAX_TO_ONE = 1.05

_T = TypeVar("_T")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20, help="requests of each case")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    for name in ("adapters", "rank", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    process_settings.settle()
    arguments.device, arguments.idle, arguments.concurrency = "cpu", 0, 1
    arguments.prompt_tokens, arguments.new_tokens = PROMPT_TOKENS, NEW_TOKENS
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = run(Setup.of(arguments, Path(folder)), arguments.adapters)
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = f"peft-truefoundry-{arguments.shape}-{arguments.adapters}.json"
        (arguments.out / name).write_text(json.dumps(report, indent=1) + "\n")


def run(setup: Setup, num_adapters: int) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    adapters = setup.adapters("peft", [setup.rank] * num_adapters)
    adapter_bytes = num_adapters * setup.shape.adapter_bytes(setup.rank)
    many = f"{num_adapters} adapters"
    with ExitStack() as stack:
        session = setup.session(stack, adapter_bytes=adapter_bytes, host_bytes=2 * adapter_bytes)
        peft = stack.enter_context(
            peft_process(
                setup.model(),
                adapters,
                dtype=getattr(torch, setup.dtype),
                vocab_size=setup.shape.vocab_size,
                num_threads=setup.num_threads,
            )
        )
        for adapter in adapters:
            _request(session, adapter)
        seconds = warm_and_run(
            {
                "chorale, base only": _chorale(session, [None]),
                "chorale, 1 adapter": _chorale(session, adapters[:1]),
                f"chorale, {many}": _chorale(session, adapters),
                "transformers, base only": _turn(
                    [None], lambda _: peft.base(1, PROMPT_TOKENS, NEW_TOKENS)
                ),
                "peft, 1 adapter": _peft(peft, adapters[:1]),
                f"peft, {many}": _peft(peft, adapters),
            },
            setup.rounds,
        )
    ratios = [
        Ratio(
            f"latency of {many} to base only",
            f"chorale, {many}",
            "chorale, base only",
            at_most=MAX_TO_BASE if (setup.shape_name, num_adapters) == ("small", 8) else None,
        ),
        Ratio(
            f"latency of {many} to 1",
            f"chorale, {many}",
            "chorale, 1 adapter",
            at_most=MAX_TO_ONE if num_adapters >= 100 else None,
        ),
        Ratio(f"peft: latency of {many} to 1", f"peft, {many}", "peft, 1 adapter"),
        Ratio(f"latency of {many} to peft's", f"chorale, {many}", f"peft, {many}"),
    ]
    return {
        "schema": SCHEMA,
        "benchmark": "peft_truefoundry",
        **provenance(),
        **setup.parameters(),
        "num_adapters": num_adapters,
        "device": device_name("cpu"),
        "torch": torch.__version__,
        "latency_s": seconds,
        "ratios": judged(ratios, seconds),
    }


def show(report: dict[str, Any]) -> None:
    print(f"{report['shape']}, rank {report['rank']}, {report['dtype']} on {report['device']}")
    for name, seconds in report["latency_s"].items():
        print(f"{name:<56}{statistics.median(seconds) * 1e3:>8.1f}  ms")
    print_ratios(report["ratios"])


def _request(session: Session, adapter: Adapter | None) -> float:
    return session.closed_loop(
        [adapter], prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS
    ).elapsed_s


def _chorale(session: Session, adapters: Sequence[Adapter | None]) -> Callable[[], float]:
    return _turn(adapters, lambda adapter: _request(session, adapter))


def _peft(peft: PeftProcess, adapters: Sequence[Adapter]) -> Callable[[], float]:
    names = [adapter.name for adapter in adapters]
    return _turn(names, lambda name: peft.switching([name], PROMPT_TOKENS, NEW_TOKENS))


def _turn(items: Sequence[_T], serve: Callable[[_T], float]) -> Callable[[], float]:
    """One request a turn: a machine whose speed drifts favours none."""
    in_turn = itertools.cycle(items)
    return lambda: serve(next(in_turn))


if __name__ == "__main__":
    main()
