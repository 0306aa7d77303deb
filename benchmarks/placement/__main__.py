"""Placement and refusal in simulated time: S-LoRA's overload, and placement by first tokens.

    python -m benchmarks.placement [--planes 2] [--duration 120] [--rounds 3] [--out DIR]

The control plane's own placement, over data planes that run the engine's own scheduler; only steps
and loads are simulated. `overload`: 1.5 times what the fleet can do, first token within 6 s: nobody
is ever refused, data planes give up what cannot make it, and admission refuses besides. `ahead`:
0.8 times that on four data planes and 500 adapters: the mean first token to that of placement by
load.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.load import generators
from benchmarks.load.provenance import provenance
from benchmarks.load.workload import Request
from benchmarks.placement.fleet import Mode, capacity, run
from benchmarks.placement.plane import PlaneCosts
from controlplane.placement.placement import PlacementPolicy

SCHEMA = "chorale-placement-bench/1"
SLO_S = 6.0
OVERLOAD, AHEAD_LOAD = 1.5, 0.8
AHEAD_PLANES, AHEAD_ADAPTERS, OVERLOAD_ADAPTERS = 4, 500, 100
MAX_AHEAD = 1.0  # mean first token, to placement by load

OVERLOAD_MODES = (
    Mode("no abort"),
    Mode("data planes abort", plane_slo=True),
    Mode("admission refuses", plane_slo=True, admission=True, foresight=True),
)
BY_LOAD, BY_FIRST_TOKEN = Mode("by load"), Mode("by first token", foresight=True)
COSTS = {
    "slow steps": PlaneCosts(),
    "fast steps": PlaneCosts(step_s=0.010, row_s=0.0001, max_running=64, num_pages=2048),
}
_UNBOUNDED = PlacementPolicy(max_queue_factor=1e9)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--planes", type=int, default=2, help="of the overloaded fleet")
    parser.add_argument("--duration", type=float, default=120.0, help="simulated seconds")
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    if min(arguments.planes, arguments.rounds) < 1 or arguments.duration < 1:
        parser.error("--planes, --rounds and --duration must be at least 1")
    report = {
        "schema": SCHEMA,
        "benchmark": "placement",
        **provenance(),
        "slo_s": SLO_S,
        "costs": {name: asdict(costs) for name, costs in COSTS.items()},
        "overload": overload(arguments.planes, arguments.duration, arguments.rounds),
        "ahead": ahead(arguments.duration, arguments.rounds),
    }
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "placement.json").write_text(json.dumps(report, indent=1) + "\n")


def overload(num_planes: int, duration_s: float, rounds: int) -> list[dict[str, Any]]:
    """A line for each mode and burstiness, with its rounds."""
    costs = COSTS["slow steps"]
    rate = num_planes * capacity(costs)
    lines: list[dict[str, Any]] = []
    for cv in (1.0, 8.0):
        for mode in OVERLOAD_MODES:
            found = [
                run(
                    mode,
                    _requests(OVERLOAD_ADAPTERS, OVERLOAD * rate, duration_s, cv, seed),
                    costs,
                    num_planes=num_planes,
                    slo_s=SLO_S,
                    policy=_UNBOUNDED,
                    warm=_requests(OVERLOAD_ADAPTERS, rate / 2, 30.0, 1.0, 10_000 + seed),
                )
                for seed in range(rounds)
            ]
            lines.append({"cv": cv, "mode": mode.name, "rate": OVERLOAD * rate, "rounds": found})
    return lines


def ahead(duration_s: float, rounds: int) -> list[dict[str, Any]]:
    """By costs and skew: mean first tokens of both placements, round by round."""
    lines: list[dict[str, Any]] = []
    for name, costs in COSTS.items():
        rate = AHEAD_PLANES * capacity(costs)
        for alpha in (1.0, 0.3):
            pairs = [
                [
                    run(
                        mode,
                        _requests(AHEAD_ADAPTERS, AHEAD_LOAD * rate, duration_s, 1.0, seed, alpha),
                        costs,
                        num_planes=AHEAD_PLANES,
                        slo_s=SLO_S,
                        policy=PlacementPolicy(),
                        warm=_requests(AHEAD_ADAPTERS, rate / 2, 60.0, 1.0, 10_000 + seed, alpha),
                    )
                    for mode in (BY_LOAD, BY_FIRST_TOKEN)
                ]
                for seed in range(rounds)
            ]
            ratios = [new["mean_ttft_s"] / old["mean_ttft_s"] for old, new in pairs]
            lines.append(
                {
                    "costs": name,
                    "alpha": alpha,
                    "rounds": [{"by_load": old, "by_first_token": new} for old, new in pairs],
                    "ratios": ratios,
                    "median": statistics.median(ratios),
                    "at_most": MAX_AHEAD,
                    "held": statistics.median(ratios) <= MAX_AHEAD,
                }
            )
    return lines


def show(report: dict[str, Any]) -> None:
    print(f"1.5 times what the fleet can do, first token within {SLO_S:g} s; medians of rounds")
    print(f"{'':<26}{'attained':>10}{'late, served':>14}{'told no after':>15}")
    for line in report["overload"]:
        figures = [
            statistics.median([each[name] or 0.0 for each in line["rounds"]])
            for name in ("attainment", "late_share_of_served", "told_no_after_s")
        ]
        print(
            f"cv {line['cv']:g}, {line['mode']:<20}{figures[0]:>10.3f}{figures[1]:>14.3f}"
            f"{figures[2]:>13.2f} s"
        )
    print("mean first token, placed by expected first token to by load")
    for line in report["ahead"]:
        verdict = "holds" if line["held"] else "DOES NOT HOLD"
        spread = f"{min(line['ratios']):.3f} to {max(line['ratios']):.3f}"
        print(
            f"{line['costs']}, alpha {line['alpha']:<10g}{line['median']:>8.3f}  ({spread})"
            f"  <= {line['at_most']:g} {verdict}"
        )


def _requests(
    num_adapters: int, rate: float, duration_s: float, cv: float, seed: int, alpha: float = 1.0
) -> tuple[Request, ...]:
    names = [f"{number:064x}" for number in range(num_adapters)]
    workload = generators.slora(
        names, alpha=alpha, cv=cv, rate=rate, duration_s=duration_s, seed=seed
    )
    return workload.phases[0].requests


if __name__ == "__main__":
    main()
