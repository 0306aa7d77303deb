"""What it takes a data plane to get an adapter, by its own report."""

from __future__ import annotations

from controlplane.fleet.counters import Counters

# Until a data plane has loaded anything: only the order of the origins and of sizes matters then.
_NOMINAL = {"source": (0.05, 5e7), "disk": (0.002, 5e8), "host": (0.0, 5e9)}


def load_s(counters: Counters, held: str, source: str, size_bytes: int) -> float:
    """Seconds that a request would wait for it. held: the tier that has it, or ""."""
    if held == "pool":
        return 0.0
    origin = held or source.partition(":")[0]
    seconds = loaded_bytes = 0.0
    for count in counters.load_counts:
        if count.outcome == "OK" and count.origin == origin:
            seconds += count.read_s + count.parse_s + count.build_s
            loaded_bytes += count.size_bytes
    if seconds > 0 and loaded_bytes > 0:
        return seconds / loaded_bytes * size_bytes
    fixed_s, bytes_per_s = _NOMINAL[held or "source"]
    return fixed_s + size_bytes / bytes_per_s


def tier_bytes(counters: Counters, tier: str) -> int:
    """The bound of a tier; 0 when it has none, or did not say."""
    return next((each.max_bytes for each in counters.tiers if each.tier == tier), 0)
