"""Placement by prompts' prefixes and without, in one run.

    python -m benchmarks.prefixes [--rounds 4] [--shape small] [--skip-served] [--out DIR]

`simulated`: conversations over 2 and 8 data planes in simulated time, the control plane's placement
over the engine's own scheduler and prefix cache; in the last case everybody has the same system
prompt and nobody comes back. `served`: the same over two real data planes on this CPU. `cost`: of
admissions with and without prefixes, in Redis and in all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.fixtures import write_fixtures
from benchmarks.load.provenance import provenance
from benchmarks.models import SHAPES
from benchmarks.placement.plane import PlaneCosts
from benchmarks.prefixes import cost, served, simulated
from benchmarks.prefixes.conversations import Traffic, conversations
from benchmarks.servers import chorale_server
from chorale import AsyncClient

SCHEMA = "chorale-prefixes-bench/1"
COSTS = PlaneCosts(num_pages=4096)
TALKS = Traffic()
ONE_SYSTEM = Traffic(num_systems=1, num_turns=1)
CASES = (  # name, traffic, data planes, turns a second on each, bound of the mean first token
    ("conversations", TALKS, 2, 2.0, 1.0),
    ("conversations", TALKS, 8, 2.0, 1.0),
    ("conversations", TALKS, 8, 3.5, 1.0),
    ("one system prompt", ONE_SYSTEM, 8, 3.5, 1.05),
)
SERVED = Traffic(
    num_systems=4,
    system_tokens=384,
    num_turns=4,
    user_tokens=(32, 96),
    output_tokens=(8, 24),
    least_gap_s=0.1,
    gap_s=0.5,
    vocab_size=512,
)
AT_ONCE = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--duration", type=float, default=180.0, help="simulated seconds")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--skip-served", action="store_true", help="no real data planes")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.duration < 60:
        parser.error("--rounds must be at least 1, --duration at least 60")
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "benchmark": "prefixes",
        **provenance(),
        "costs": asdict(COSTS),
        "simulated": simulate(arguments.duration, arguments.rounds),
        "cost": cost.measure(num_planes=8, num_blocks=2 * arguments.rounds),
    }
    if not arguments.skip_served:
        report["served"] = serve(arguments.shape, arguments.rounds)
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "prefixes.json").write_text(json.dumps(report, indent=1) + "\n")


def simulate(duration_s: float, rounds: int) -> list[dict[str, Any]]:
    """A line for each case; the first third of a run fills the caches."""
    lines: list[dict[str, Any]] = []
    for name, traffic, num_planes, rate, bound in CASES:
        pairs: list[dict[str, dict[str, Any]]] = []
        for seed in range(rounds):
            turns = conversations(traffic, rate * num_planes, duration_s, seed)
            pairs.append(
                {
                    mode: simulated.run(
                        turns,
                        COSTS,
                        num_planes=num_planes,
                        by_prefixes=mode == served.WITH,
                        after_s=duration_s / 3,
                    )
                    for mode in (served.WITHOUT, served.WITH)
                }
            )
        ratios = [pair["with"]["mean_ttft_s"] / pair["without"]["mean_ttft_s"] for pair in pairs]
        lines.append(
            {
                "case": name,
                "traffic": asdict(traffic),
                "num_planes": num_planes,
                "turns_per_s": rate * num_planes,
                "rounds": pairs,
                "mean_ttft_ratios": ratios,
                "median": statistics.median(ratios),
                "at_most": bound,
                "held": statistics.median(ratios) <= bound,
            }
        )
    return lines


def serve(shape: str, rounds: int) -> dict[str, Any]:
    """Raises: BenchError."""
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as name:
        folder = Path(name)
        fixtures = write_fixtures(folder, SHAPES[shape], num_adapters=0, ranks=(16,))
        options = ("--dtype=bfloat16", "--data-planes=2")
        with chorale_server(fixtures, folder, *options) as server:
            found = asyncio.run(_served(server.grpc_address, rounds))
    return {"shape": shape, "num_planes": 2, "traffic": asdict(SERVED), "at_once": AT_ONCE, **found}


async def _served(address: str, num_rounds: int) -> dict[str, Any]:
    async with AsyncClient(address) as client:
        return await served.rounds(client, SERVED, num_rounds=num_rounds, num_at_once=AT_ONCE)


def show(report: dict[str, Any]) -> None:
    print(
        "medians of rounds: share of prompt tokens cached, and mean first tokens to those without"
    )
    for line in report["simulated"]:
        shares = [
            statistics.median(each[mode]["cached_share"] for each in line["rounds"])
            for mode in (served.WITHOUT, served.WITH)
        ]
        busiest = max(each["with"]["busiest_to_even"] for each in line["rounds"])
        verdict = "holds" if line["held"] else "DOES NOT HOLD"
        print(
            f"{line['case']}, {line['num_planes']} data planes, {line['turns_per_s']:g}/s: "
            f"{shares[0]:.3f} to {shares[1]:.3f}, first token {_spread(line['mean_ttft_ratios'])} "
            f"<= {line['at_most']:g} {verdict}; busiest {busiest:.2f} of an even share"
        )
    if found := report.get("served"):
        shares = [found["cached_share"][mode] for mode in (served.WITHOUT, served.WITH)]
        print(
            f"{found['shape']} on this CPU, 2 data planes: {shares[0]:.3f} to {shares[1]:.3f}, "
            f"first token {_spread(found['mean_ttft_ratios'])}"
        )
    for line in report["cost"]:
        print(
            f"admission, {line['prompt']}, {line['num_hashes']} hashes "
            f"({line['hashing_us']:.0f} us to make): {line['redis_us']:.0f} us of Redis, "
            f"{line['admission_us']:.0f} us in all, "
            f"{line['admission_ratio']:.2f} of that without"
        )


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
