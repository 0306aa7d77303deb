"""Prefetch predictions against none, and against knowing what comes, on synthetic requests.

    python -m benchmarks.prefetch [--adapters 600] [--requests 20000] [--out DIR]

Simulated time, no model: the product's planner, placement and host tier; demand as the scripts in
Redis count it (benchmarks/prefetch_demand.py). Data planes report each second, and are told then.
The clairvoyant is told what will be asked for in the next 30 s, has no budget, and gives up what is
used again the latest, with the same memory, load times and loads at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from benchmarks.load.provenance import provenance
from benchmarks.prefetch_demand import DemandTable
from benchmarks.prefetch_fleet import FarthestTier, SimulatedPlane, Tally, host_tier, next_uses
from benchmarks.prefetch_traces import GENERATORS, Timed
from controlplane.placement.expectation import RequestNeeds
from controlplane.placement.placement import Candidate, Choice, PlacementPolicy, place
from controlplane.prefetch.limits import DemandLimits
from controlplane.prefetch.model import Score, Wanted
from controlplane.prefetch.planner import destinations, plan
from controlplane.prefetch.policy import PrefetchPolicy

SCHEMA = "chorale-prefetch-bench/1"
NUM_PLANES = 4
CAPACITY = 0.25  # host memory of all data planes, to the bytes of all adapters
RATE = 4.0  # requests per second
MAX_MISSES_ADDED = 0.01  # on a trace without structure
MAX_WASTED_SHARE = 0.02  # of the bytes loaded there
MIN_SESSION_CUT = 0.05  # of the misses of sessions, at least
_BASE = "base"
_LOOK_AHEAD_S = 30.0

How = Literal["none", "predicted", "clairvoyant"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=600)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    if arguments.adapters < 3 or arguments.requests < 1:
        parser.error("--adapters must be at least 3, --requests at least 1")
    report = {
        "schema": SCHEMA,
        "benchmark": "prefetch",
        **provenance(),
        "adapters": arguments.adapters,
        "requests": arguments.requests,
        "data_planes": NUM_PLANES,
        "host_share": CAPACITY,
        **compare(arguments.adapters, arguments.requests),
    }
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "prefetch.json").write_text(json.dumps(report, indent=1) + "\n")


def compare(num_adapters: int, num_requests: int) -> dict[str, Any]:
    """Shares by trace, and the verdict."""
    lines: list[dict[str, Any]] = []
    for name, generate in GENERATORS.items():
        trace = generate(num_adapters, num_requests, RATE)
        none, _ = simulate(trace, "none")
        ours, scores = simulate(trace, "predicted")
        best, _ = simulate(trace, "clairvoyant")
        missed = none.requests - none.found
        lines.append(
            {
                "trace": name,
                "found_without": none.found / none.requests,
                "found_with": ours.found / ours.requests,
                "found_clairvoyant": best.found / best.requests,
                "misses_to_none": (ours.requests - ours.found) / missed,
                "misses_to_none_clairvoyant": (best.requests - best.found) / missed,
                "wait_to_none": ours.wait_s / none.wait_s,
                "wait_to_none_clairvoyant": best.wait_s / none.wait_s,
                "loaded_to_none": ours.loaded_bytes / none.loaded_bytes,
                "found_early_without": _share(none.early_found, none.early),
                "found_early_with": _share(ours.early_found, ours.early),
                "wasted_share_of_loaded": ours.wasted_bytes / ours.loaded_bytes,
                "predictions": {kind: outcomes(score) for kind, score in scores.items()},
            }
        )
    by_name = {line["trace"]: line for line in lines}
    uniform = by_name["uniform"]
    held = (
        uniform["misses_to_none"] <= 1 + MAX_MISSES_ADDED
        and uniform["wasted_share_of_loaded"] <= MAX_WASTED_SHARE
        and by_name["sessions"]["misses_to_none"] <= 1 - MIN_SESSION_CUT
        and all(line["misses_to_none"] <= 1 + MAX_MISSES_ADDED for line in lines)
    )
    return {"runs": lines, "held": held}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def outcomes(score: Score) -> dict[str, int]:
    return {
        "made": score.num_made,
        "hits": score.num_hits,
        "late": score.num_late,
        "misses": score.num_misses,
    }


def simulate(trace: Timed, how: How) -> tuple[Tally, dict[str, Score]]:
    run = _Run(trace, how)
    for at in range(len(trace.times_s)):
        run.step(at)
    return run.finish()


class _Run:
    def __init__(self, trace: Timed, how: How) -> None:
        self._trace = trace
        self._how = how
        self._digests = [
            hashlib.sha256(str(index).encode()).hexdigest() for index in range(len(trace.sizes))
        ]
        self._times = trace.times_s.tolist()
        self._adapters: list[int] = trace.adapters.tolist()
        self._sizes = dict(zip(self._digests, trace.sizes.tolist(), strict=True))
        self._policy = PrefetchPolicy()
        self._placement = PlacementPolicy()
        self._demand = DemandTable(DemandLimits(), self._describe, self._is_there)
        self._tally = Tally()
        self._now_s = 0.0
        self._next_tick_s = 1.0
        self._restarts = list(trace.restarts)
        self._uses: dict[str, list[float]] = {digest: [] for digest in self._digests}
        for time_s, adapter in zip(self._times, self._adapters, strict=True):
            self._uses[self._digests[adapter]].append(time_s)
        self._next_use = {digest: next_uses(times) for digest, times in self._uses.items()}
        max_bytes = int(sum(self._sizes.values()) * CAPACITY / NUM_PLANES)
        self._planes = [
            SimulatedPlane(f"dp-{i}", max_bytes, self._sizes, self._tally, self._tier(max_bytes))
            for i in range(NUM_PLANES)
        ]
        for plane in self._planes:
            plane.heartbeat(0.0)
        self._told: dict[str, list[str]] = {}
        self._ahead = 0

    def step(self, at: int) -> None:
        """Up to one request, and that."""
        now_s = self._times[at]
        while self._next_tick_s <= now_s:
            self._tick(self._next_tick_s)
            self._next_tick_s += 1.0
        self._now_s = now_s
        digest = self._digests[self._adapters[at]]
        plane = self._place(digest)
        plane.request(digest, now_s)
        if self._how == "predicted":
            identity = f"{digest}:{_BASE}"
            asked = [("", f":{_BASE}", "", 1), (plane.data_plane_id, identity, digest, 1)]
            tenant = str(self._trace.tenants[at])
            self._demand.reserve(int(now_s * 1000), asked, [(tenant, identity)])

    def finish(self) -> tuple[Tally, dict[str, Score]]:
        for plane in self._planes:
            plane.finish()
        scores = self._demand.snapshot(self._now_s * 1000, []).scores
        return self._tally, {str(kind): score for kind, score in scores.items()}

    def _tick(self, now_s: float) -> None:
        self._now_s = now_s
        if self._restarts and self._restarts[0] <= now_s:
            self._restarts.pop(0)
            self._planes[0].restart(now_s)
            self._demand.joined(self._planes[0].data_plane_id)
        for plane in self._planes:  # heartbeats: what was told since the last one is heard
            if self._how == "clairvoyant":
                plane.ask_only(self._told.pop(plane.data_plane_id, []))
            else:
                plane.ask(self._told.pop(plane.data_plane_id, []))
            plane.heartbeat(now_s)
        if self._how == "predicted":
            self._predict(int(now_s * 1000))
        elif self._how == "clairvoyant":
            self._foresee(now_s)

    def _predict(self, now_ms: int) -> None:
        budget = self._policy.budget_bytes_per_s
        seen = [plane.seen(now_ms / 1000, budget, _BASE) for plane in self._planes]
        made = plan(self._demand.snapshot(now_ms, seen), self._policy)
        asked = {ask.data_plane_id for ask in made.asks}
        for plane in self._planes:
            if plane.data_plane_id in asked:
                plane.debt = made.debts[plane.data_plane_id], now_ms / 1000
        for ask in self._demand.made(now_ms, made.asks):
            self._told.setdefault(ask.data_plane_id, []).append(ask.wanted.digest)

    def _foresee(self, now_s: float) -> None:
        while self._ahead < len(self._times) and self._times[self._ahead] <= now_s:
            self._ahead += 1
        budget = self._policy.budget_bytes_per_s
        seen = [plane.seen(now_s, budget, _BASE) for plane in self._planes]
        at, known = self._ahead, set[str]()
        while at < len(self._times) and self._times[at] <= now_s + _LOOK_AHEAD_S:
            digest = self._digests[self._adapters[at]]
            at += 1
            if digest in known:
                continue
            known.add(digest)
            wanted = self._describe(f"{digest}:{_BASE}")
            (plane,) = destinations(wanted, seen, 0.0, self._policy)
            if plane.held.get(wanted.identity) != "host":
                self._told.setdefault(plane.data_plane_id, []).append(digest)

    def _place(self, digest: str) -> SimulatedPlane:
        candidates = [
            Candidate(
                data_plane_id=plane.data_plane_id,
                endpoint="",
                base_model=_BASE,
                load=plane.report[0],
                num_placed=plane.placed,
                tier=plane.held_as(digest),
                last_heartbeat_s=self._now_s,
            )
            for plane in self._planes
        ]
        chosen = place(
            candidates,
            RequestNeeds(digest=digest),
            base_model=_BASE,
            now_s=self._now_s,
            policy=self._placement,
        )
        assert isinstance(chosen, Choice), "the fleet is never full here"
        chosen_id = chosen.candidate.data_plane_id
        return next(p for p in self._planes if p.data_plane_id == chosen_id)

    def _describe(self, identity: str) -> Wanted:
        digest = identity.partition(":")[0]
        size_bytes = self._sizes[digest]
        return Wanted(identity, digest, _BASE, digest, "https://adapters", size_bytes)

    def _is_there(self, data_plane_id: str, identity: str) -> bool:
        plane = next(each for each in self._planes if each.data_plane_id == data_plane_id)
        return plane.held_as(identity.partition(":")[0]) == "host"

    def _tier(self, max_bytes: int) -> Callable[..., Any]:
        if self._how != "clairvoyant":
            return host_tier(max_bytes)
        return lambda _: FarthestTier(max_bytes, lambda each: self._next_use[each](self._now_s))


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['adapters']} adapters, {report['requests']} requests, {NUM_PLANES} data planes; "
        "adapters found in host memory"
    )
    print(
        f"{'trace':<12}{'without':>9}{'with':>8}{'clairv.':>9}"
        f"{'misses':>9}{'clairv.':>9}{'wait':>8}{'loaded':>8}{'wasted':>8}"
    )
    for line in report["runs"]:
        print(
            f"{line['trace']:<12}{line['found_without']:>9.1%}{line['found_with']:>8.1%}"
            f"{line['found_clairvoyant']:>9.1%}{line['misses_to_none']:>9.3f}"
            f"{line['misses_to_none_clairvoyant']:>9.3f}{line['wait_to_none']:>8.3f}"
            f"{line['loaded_to_none']:>8.3f}{line['wasted_share_of_loaded']:>8.2%}"
        )
    for line in report["runs"]:
        if line["found_early_with"] is not None:
            print(
                f"{line['trace']}, in the first minute of a data plane: "
                f"{line['found_early_without']:.1%} without, {line['found_early_with']:.1%} with"
            )
    verdict = "holds" if report["held"] else "DOES NOT HOLD"
    print(
        f"misses, wait, loaded bytes: to those without; at most {MAX_MISSES_ADDED:.0%} more misses "
        f"anywhere, {MIN_SESSION_CUT:.0%} fewer on sessions, {MAX_WASTED_SHARE:.0%} wasted on "
        f"uniform: {verdict}"
    )


if __name__ == "__main__":
    main()
