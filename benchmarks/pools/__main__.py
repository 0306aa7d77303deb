"""One pool for KV and adapters against pools that split the same bytes.

    python -m benchmarks.pools [--time simulated|real] [--shape small] [--pages 200] [--out DIR]

A `slora` run on a pool that is tight, whose mix shifts from KV-heavy (few adapters, long answers)
to adapter-heavy (many adapters of all ranks, short requests) and back. The engine, its scheduler,
prefix cache and eviction are the same in all runs; only the pool differs: one for all, a fixed
share for adapters, or fixed slots that each cost as many pages as the largest adapter.

Requests come at --load times what the pool's bytes could carry if all of them were in use all
the time, by the costs measured at the start: more than that shows what each can do. A
request counts when its first token came within --objective seconds and it was completed. Who can no
longer make it is aborted, by all alike.

In simulated time the forward pass and the loads only take what they were measured to take on this
machine in this run; in real time everything runs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.load.metrics import summary
from benchmarks.load.provenance import provenance
from benchmarks.models import ALL_LINEAR, SHAPES
from benchmarks.pools.drive import Objective
from benchmarks.pools.policies import Policy
from benchmarks.pools.rig import BATCH_TOKENS, PAGE_TOKENS, Rig
from benchmarks.pools.simulated import Costs
from benchmarks.pools.workload import Mix, Shift
from benchmarks.rounds import Ratio, judged, print_ratios
from benchmarks.session import device_name

SCHEMA = "chorale-pools-bench/1"
ONE_POOL = "one pool"
LORAX_SHARE = 0.1
NOT_HELD = "DOES NOT HOLD"
METRICS = ("attainment", "goodput_tokens_per_s", "output_tokens_per_s")


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = measure(arguments, Path(folder))
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = f"pools-{arguments.shape}-{report['device_type']}-{arguments.time}.json"
        (arguments.out / name).write_text(json.dumps(report, indent=1) + "\n")


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.pools",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--time", choices=["simulated", "real"], default="simulated")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--pages", type=int, default=200, help="of the pool, 16 tokens each")
    parser.add_argument("--adapters", type=int, default=64, help="of the adapter-heavy phase")
    parser.add_argument("--few", type=int, default=1, help="adapters of the KV-heavy phases")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32], help="in turn")
    parser.add_argument("--targets", nargs="+", choices=ALL_LINEAR, default=list(ALL_LINEAR))
    parser.add_argument(
        "--long",
        type=span,
        nargs=2,
        default=[(128, 512), (512, 1024)],
        metavar="LOW:HIGH",
        help="tokens in and out of KV-heavy requests",
    )
    parser.add_argument(
        "--short",
        type=span,
        nargs=2,
        default=[(16, 64), (64, 192)],
        metavar="LOW:HIGH",
        help="of adapter-heavy requests",
    )
    parser.add_argument("--phase", type=float, default=150.0, help="seconds of each phase")
    parser.add_argument("--load", type=float, default=1.4, help="over what the bytes could do")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--cv", type=float, default=1.0)
    parser.add_argument("--objective", type=float, default=6.0, help="first token, seconds")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="*",
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        help="of the pool for adapters",
    )
    parser.add_argument(
        "--slots",
        type=int,
        nargs="*",
        default=[1, 2, 3],
        help="numbers of fixed slots",
    )
    parser.add_argument("--max-running", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="each with arrivals of its own")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args(given)
    for name in ("pages", "adapters", "few", "max_running", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("phase", "load", "objective"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name} must be above 0")
    if min(arguments.ranks) < 1 or arguments.few > arguments.adapters:
        parser.error("--ranks must be at least 1, and --few at most --adapters")
    if not all(0 < share < 1 for share in arguments.shares) or min(arguments.slots, default=1) < 1:
        parser.error("--shares must be between 0 and 1, --slots at least 1")
    return arguments


def span(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    ranks = [arguments.ranks[i % len(arguments.ranks)] for i in range(arguments.adapters)]
    rig = Rig(
        folder,
        arguments.shape,
        ranks,
        targets=arguments.targets,
        num_pages=arguments.pages,
        max_running=arguments.max_running,
        dtype=arguments.dtype,
        device=arguments.device,
        num_threads=arguments.threads,
    )
    costs, measured = rig.calibrate(3)
    shift = shift_of(arguments, rig, costs)
    runs: dict[str, list[dict[str, Any]]] = {}
    refused: dict[str, str] = {}
    for round_number in range(arguments.rounds):
        for policy in policies(arguments):
            if policy.name in refused:
                continue
            try:
                runs.setdefault(policy.name, []).append(
                    _run(arguments, rig, shift, policy, costs, round_number)
                )
            except BenchError as error:
                if error.reason != "POLICY_TOO_SMALL":
                    raise
                refused[policy.name] = error.message
                del runs[policy.name]
    lines = ratios(runs)
    return {
        "schema": SCHEMA,
        "benchmark": "pools",
        **provenance(),
        "shape": arguments.shape,
        "time": arguments.time,
        "device_type": rig.device.type,
        "device": device_name(rig.device.type),
        "dtype": str(rig.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "pool_pages": arguments.pages,
        "adapter_pages": rig.pages,
        "ranks": arguments.ranks,
        "targets": arguments.targets,
        "load": arguments.load,
        "alpha": arguments.alpha,
        "cv": arguments.cv,
        "phase_s": arguments.phase,
        "ttft_objective_s": arguments.objective,
        "max_running": arguments.max_running,
        "max_batch_tokens": BATCH_TOKENS,
        "phases": [
            {
                "name": mix.name,
                "num_adapters": mix.num_adapters,
                "input_tokens": list(mix.input_tokens),
                "output_tokens": list(mix.output_tokens),
                "requests_per_s": rate,
            }
            for mix, rate in shift.phases
        ],
        "measured_costs": measured,
        "cannot_serve": refused,
        "runs": runs,
        "ratios": lines,
        "holds_by": promises(lines),
    }


def policies(arguments: argparse.Namespace) -> list[Policy]:
    shares = [Policy(f"{share:.0%} for adapters", share) for share in arguments.shares]
    slots = [Policy(f"{count} slots", slots=count) for count in arguments.slots]
    return [Policy(ONE_POOL), *shares, *slots]


def shift_of(arguments: argparse.Namespace, rig: Rig, costs: Costs) -> Shift:
    heavy = Mix("KV-heavy", arguments.few, *arguments.long)
    many = Mix("adapter-heavy", arguments.adapters, *arguments.short)
    rates = {mix: arguments.load * capacity(mix, rig, costs) for mix in (heavy, many)}
    return Shift(
        tuple((mix, rates[mix]) for mix in (heavy, many, heavy)),
        arguments.phase,
        arguments.alpha,
        arguments.cv,
    )


def capacity(mix: Mix, rig: Rig, costs: Costs) -> float:
    """Requests a second that the pool could carry with every page in use, by the measured costs.
    A request holds its prompt and on average half of its answer."""
    sizes = sorted(list(rig.pages.values())[: mix.num_adapters])
    kv = (mix.mean_input + mix.mean_output / 2) / PAGE_TOKENS + 0.5
    running = 0.0
    for streams in range(1, rig.max_running + 1):
        # So many streams draw so many different adapters, on average.
        different = mix.num_adapters * (1 - (1 - 1 / mix.num_adapters) ** streams)
        if streams * kv + different * statistics.fmean(sizes) <= rig.num_pages:
            running = streams
    if not running:
        raise BenchError("POOL_TOO_SMALL", f"--pages {rig.num_pages} cannot hold one request")
    prefill_s = costs.steps.prefill_s(math.ceil(mix.mean_input), BATCH_TOKENS)
    decode_s = mix.mean_output * costs.steps.step_s(int(running)) / running
    return 1 / (prefill_s + decode_s)


def ratios(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One pool to the best split, to the LoRAX share and to the best number of slots. The best is
    whichever has the highest median over the whole run, by the metric in question."""
    lines: list[dict[str, Any]] = []
    for metric in METRICS:
        values = {
            name: [max(each["whole"][metric], 1e-9) for each in rounds]
            for name, rounds in runs.items()
        }
        splits = [name for name in values if name.endswith("for adapters")]
        slots = [name for name in values if name.endswith("slots")]
        lorax = f"{LORAX_SHARE:.0%} for adapters"
        peers = [
            (_best(values, splits), "the best split", 1.3),
            (lorax if lorax in values else "", "LoRAX's share", 1.5),
            (_best(values, slots), "the best fixed slots", 1.5),
        ]
        for name, what, bound in peers:
            if name:
                title = f"{metric}: {ONE_POOL} to {what}, {name}"
                (line,) = judged([Ratio(title, ONE_POOL, name, at_least=bound)], values)
                lines.append({"peer": what, "metric": metric, **line})
    return lines


def promises(lines: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Peer -> the metrics by which the bound holds. It is to hold by throughput or attainment."""
    peers = dict.fromkeys(line["peer"] for line in lines)
    return {
        peer: [line["metric"] for line in lines if line["peer"] == peer and line["held"]]
        for peer in peers
    }


def _best(values: dict[str, list[float]], names: list[str]) -> str:
    return max(names, key=lambda name: statistics.median(values[name]), default="")


def _run(
    arguments: argparse.Namespace,
    rig: Rig,
    shift: Shift,
    policy: Policy,
    costs: Costs,
    round_number: int,
) -> dict[str, Any]:
    phases = shift.requests(list(rig.adapters), round_number)
    result = rig.run(
        policy,
        [request for phase in phases for request in phase.requests],
        Objective(arguments.objective),
        longest=max(mix.longest for mix, _ in shift.phases),
        phase_s=shift.phase_s,
        num_phases=len(shift.phases),
        costs=costs if arguments.time == "simulated" else None,
        seed=round_number,
    )
    records = iter(result.records)
    by_phase = []
    for number, phase in enumerate(phases):
        own = [next(records) for _ in phase.requests]
        figures = summary(own, ttft_objective_s=arguments.objective)
        used = result.usage[number].report() if number < len(result.usage) else {}
        by_phase.append({"name": phase.name, **used, **figures})
    run = {
        "whole": summary(result.records, ttft_objective_s=arguments.objective),
        "phases": by_phase,
        **result.counters,
        "took_s": result.took_s,
    }
    print_run(policy.name, run)
    return run


def print_run(name: str, run: dict[str, Any]) -> None:
    parts = [
        f"{phase['attainment']:.2f}/{phase.get('mean_pages_in_use', 0):.0f}"
        f"/{phase.get('mean_streams', 0):.1f}"
        for phase in run["phases"]
    ]
    whole = run["whole"]
    print(
        f"{name:<20} attainment {whole['attainment']:.3f} ({' '.join(parts)})"
        f"  goodput {whole['goodput_tokens_per_s']:.1f}  output {whole['output_tokens_per_s']:7.1f}"
        f" t/s  preempted {run['num_preemptions']:4}  took {run['took_s']:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['shape']}, {report['time']} time, {report['dtype']} on {report['device']},"
        f" pool of {report['pool_pages']} pages, commit {report['commit']}"
    )
    for phase in report["phases"]:
        print(f"{phase['name']}: {phase['requests_per_s']:.2f} requests/s")
    for name, rounds in report["runs"].items():
        medians = [statistics.median(r["whole"][metric] for r in rounds) for metric in METRICS]
        print(
            f"{name:<20} attainment {medians[0]:.3f}  goodput {medians[1]:.1f}"
            f"  output {medians[2]:.1f} tokens/s"
        )
    for name, reason in report["cannot_serve"].items():
        print(f"{name:<20} {reason}")
    print_ratios(report["ratios"])
    for peer, metrics in report["holds_by"].items():
        print(f"{ONE_POOL} to {peer}: {'holds by ' + ', '.join(metrics) if metrics else NOT_HELD}")


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
