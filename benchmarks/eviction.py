"""Host tier eviction against LRU and against a clairvoyant, on synthetic traces.

    python -m benchmarks.eviction [--adapters 600] [--accesses 40000] [--out DIR]

Runs the product's own `HostTier` with reload costs of a fixed part and a part by bytes. The figure
is bytes loaded again and again, first loads included, as a share of LRU's. The clairvoyant gives up
what is used again the latest (Belady's rule, whose optimality is proven for equal sizes only): with
mixed sizes it is a very strong rule, not a bound.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.eviction_traces import GENERATORS, Trace
from benchmarks.load.provenance import provenance
from storage.host_tier import HostTier

SCHEMA = "chorale-eviction-bench/1"
CAPACITIES = (0.05, 0.1, 0.25)
"""Of the bytes of all adapters."""
MAX_SHARE = 0.9  # of LRU's bytes, on at least MIN_TRACES traces
MIN_TRACES = 2
MAX_SHARE_ANYWHERE = 1.02
_LATENCY_S = 0.02
_BYTES_PER_S = 500e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=600)
    parser.add_argument("--accesses", type=int, default=40_000)
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    if min(arguments.adapters, arguments.accesses) < 1:
        parser.error("--adapters and --accesses must be at least 1")
    report = {
        "schema": SCHEMA,
        "benchmark": "eviction",
        **provenance(),
        "adapters": arguments.adapters,
        "accesses": arguments.accesses,
        **compare(arguments.adapters, arguments.accesses),
    }
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "eviction.json").write_text(json.dumps(report, indent=1) + "\n")


def compare(num_adapters: int, num_accesses: int) -> dict[str, Any]:
    """Loaded bytes by trace, capacity and policy, each trace's mean share, and the verdict."""
    lines: list[dict[str, Any]] = []
    means: dict[str, float] = {}
    for name, generate in GENERATORS.items():
        trace = generate(num_adapters, num_accesses)
        total = int(trace.sizes.sum())
        shares: list[float] = []
        for capacity in CAPACITIES:
            max_bytes = int(total * capacity)
            lru = lru_bytes(trace, max_bytes)
            ours = host_tier_bytes(trace, max_bytes)
            clairvoyant = clairvoyant_bytes(trace, max_bytes)
            shares.append(ours / lru)
            lines.append(
                {
                    "trace": name,
                    "capacity": capacity,
                    "lru_bytes": lru,
                    "host_tier_bytes": ours,
                    "clairvoyant_bytes": clairvoyant,
                    "share_of_lru": ours / lru,
                    "clairvoyant_share_of_lru": clairvoyant / lru,
                }
            )
        means[name] = float(np.mean(shares))
    held = sum(mean <= MAX_SHARE for mean in means.values()) >= MIN_TRACES
    held = held and all(line["share_of_lru"] <= MAX_SHARE_ANYWHERE for line in lines)
    return {"runs": lines, "mean_share_of_lru": means, "held": held}


def host_tier_bytes(trace: Trace, max_bytes: int) -> int:
    tier: HostTier[int] = HostTier(
        max_bytes, reload_s=lambda _, size: _LATENCY_S + size / _BYTES_PER_S
    )
    loaded = 0
    for adapter in trace.accesses.tolist():
        digest, size = str(adapter), int(trace.sizes[adapter])
        if tier.get(digest) is None:
            loaded += size
            if size <= max_bytes:
                tier.put(digest, adapter, size)
    return loaded


def lru_bytes(trace: Trace, max_bytes: int) -> int:
    kept: OrderedDict[int, int] = OrderedDict()
    held = loaded = 0
    for adapter in trace.accesses.tolist():
        if adapter in kept:
            kept.move_to_end(adapter)
            continue
        size = int(trace.sizes[adapter])
        loaded += size
        if size > max_bytes:
            continue
        while held + size > max_bytes:
            held -= kept.popitem(last=False)[1]
        kept[adapter] = size
        held += size
    return loaded


def clairvoyant_bytes(trace: Trace, max_bytes: int) -> int:
    """Gives up what is used again the latest."""
    accesses = trace.accesses.tolist()
    never = len(accesses)
    following = [never] * never
    last: dict[int, int] = {}
    for at in range(never - 1, -1, -1):
        following[at] = last.get(accesses[at], never)
        last[accesses[at]] = at
    kept: dict[int, int] = {}  # adapter -> its next use
    latest: list[tuple[int, int]] = []
    held = loaded = 0
    for at, adapter in enumerate(accesses):
        size = int(trace.sizes[adapter])
        if adapter not in kept:
            loaded += size
            if size > max_bytes:
                continue
            while held + size > max_bytes:
                use, victim = heapq.heappop(latest)
                if kept.get(victim) == -use:
                    del kept[victim]
                    held -= int(trace.sizes[victim])
            held += size
        kept[adapter] = following[at]
        heapq.heappush(latest, (-following[at], adapter))
    return loaded


def show(report: dict[str, Any]) -> None:
    print(f"{report['adapters']} adapters, {report['accesses']} uses; loaded bytes to LRU's")
    print(f"{'trace':<14}{'capacity':>9}{'host tier':>11}{'clairvoyant':>13}")
    for line in report["runs"]:
        print(
            f"{line['trace']:<14}{line['capacity']:>9.0%}{line['share_of_lru']:>11.3f}"
            f"{line['clairvoyant_share_of_lru']:>13.3f}"
        )
    verdict = "holds" if report["held"] else "DOES NOT HOLD"
    print(
        f"mean at most {MAX_SHARE:g} on {MIN_TRACES} traces, and nowhere above"
        f" {MAX_SHARE_ANYWHERE:g}: {verdict}"
    )


if __name__ == "__main__":
    main()
