"""What an engine that has nothing to do still holds."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sized
from typing import Any

from benchmarks.errors import BenchError
from dataplane.engine.prefix_cache import CachedBlock
from dataplane.engine.sequence import Sequence
from dataplane.lora.layout import HostAdapter
from dataplane.lora.resident import ResidentAdapter

_GONE = (Sequence, CachedBlock, ResidentAdapter)
MAX_TABLE = 8192
"""No table of an idle engine is larger: those that remember are bounded, all others empty."""

_ROOMS = ("dataplane.", "storage.", "kernels.")


def live_objects(num_in_host: int) -> dict[str, int]:
    """Objects that no table may refer to any more, of every engine in this process; packed adapters
    only beyond `num_in_host`."""
    gc.collect()
    alive = Counter(type(each) for each in gc.get_objects())
    found = {kind.__name__: alive[kind] for kind in _GONE if alive[kind]}
    if alive[HostAdapter] > num_in_host:
        found["HostAdapter"] = alive[HostAdapter] - num_in_host
    return found


def table_sizes(root: object) -> dict[str, int]:
    """Sizes of all containers that are attributes of `root` or of its parts, by path; those of the
    pool's own size left out. Raises: BenchError when one has grown without bound."""
    sizes = {path: len(table) for path, table in _tables(root, "", set()) if len(table)}
    grown = {path: size for path, size in sizes.items() if size > MAX_TABLE}
    if grown:
        raise BenchError("TABLE_GROWN", f"tables of an idle engine: {grown}")
    return sizes


def _tables(root: object, path: str, seen: set[int]) -> Iterator[tuple[str, Sized]]:
    if id(root) in seen:
        return
    seen.add(id(root))
    for name, value in _attributes(root):
        where = f"{path}.{name}".lstrip(".")
        if isinstance(value, (dict, list, set, Counter)) or type(value).__name__ == "deque":
            yield where, value
            continue
        if type(value).__module__.startswith(_ROOMS):
            yield from _tables(value, where, seen)


def _attributes(root: object) -> list[tuple[str, Any]]:
    names = [*getattr(root, "__dict__", {})]
    for kind in type(root).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return [(name, getattr(root, name)) for name in names if hasattr(root, name)]
