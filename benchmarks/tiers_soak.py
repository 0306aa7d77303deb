"""Many adapters through small tiers: nothing leaks, no bound is passed, every answer is right.

    python -m benchmarks.tiers_soak [--adapters 5000] [--touches 15000] [--out DIR]

Tiny adapters, a pool that holds a few of them, host memory and disk a few more, a number of
requests open at a time, some of which are aborted. Adapters are touched in random order and in
Zipf's, half and half. The right answer of each adapter is what it says alone, in an engine whose
tiers it has for itself. At last all that disk holds is read back from there. Any fault ends the run
with an error; it prints what went through.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.errors import BenchError
from benchmarks.load.provenance import provenance
from benchmarks.models import ATTENTION, SHAPES, write_adapter, write_model
from benchmarks.oversubscribed import PAGE_TOKENS
from benchmarks.session import adapter_at
from benchmarks.step_loop import StepLoop
from dataplane.channel import Adapter, Output
from dataplane.engine_options import EngineOptions
from dataplane.lora.layout import HostAdapter

SCHEMA = "chorale-tiers-soak/1"
_PROMPT = (17, 3, 101, 45, 8)
_NEW_TOKENS = 4
_ABORTED = 0.03  # of the requests
_RANKS = (1, 2, 4)
_SETTLED_S = 10.0  # after the last request, until nothing is under way
_CHECK_EVERY = 50  # steps between two proofs of the pool's books


@dataclass(frozen=True)
class Tiers:
    """How many of the largest adapters each holds."""

    pool: int = 12
    host: int = 24
    disk: int = 60


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=5000)
    parser.add_argument("--touches", type=int, default=15_000)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    if min(arguments.adapters, arguments.touches, arguments.concurrency) < 1:
        parser.error("--adapters, --touches and --concurrency must be at least 1")
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = soak(
            Path(folder),
            num_adapters=arguments.adapters,
            num_touches=arguments.touches,
            concurrency=arguments.concurrency,
            seed=arguments.seed,
            tell=True,
        )
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        whole = {"schema": SCHEMA, "benchmark": "tiers_soak", **provenance(), **report}
        (arguments.out / "tiers-soak.json").write_text(json.dumps(whole, indent=1) + "\n")


def soak(
    folder: Path,
    *,
    num_adapters: int,
    num_touches: int,
    concurrency: int,
    seed: int = 1,
    tiers: Tiers | None = None,
    tell: bool = False,
) -> dict[str, Any]:
    """What went through. Raises: BenchError at the first fault."""
    tiers = tiers or Tiers()
    shape = SHAPES["tiny"]
    write_model(folder / "model", shape)
    adapters = _write_adapters(folder, num_adapters)
    file_bytes = shape.adapter_bytes(max(_RANKS), ATTENTION)
    page_bytes = 2 * 4 * PAGE_TOKENS * shape.num_kv_heads * shape.head_dim * shape.num_layers
    built_bytes = -(-2 * file_bytes // page_bytes) * page_bytes  # float32, whole pages
    right = _alone(folder, adapters, tell=tell)
    loop = _loop(
        folder,
        pool_bytes=tiers.pool * built_bytes + (concurrency + 2) * page_bytes,
        host_bytes=tiers.host * built_bytes,
        disk_bytes=tiers.disk * 2 * file_bytes,  # headers are as large
        disk_dir=str(folder / "disk"),
    )
    try:
        return _Soak(loop, adapters, right, concurrency, seed).run(num_touches, tell=tell)
    finally:
        loop.stop()


class _Soak:
    def __init__(
        self,
        loop: StepLoop,
        adapters: Sequence[Adapter],
        right: dict[str, list[int]],
        concurrency: int,
        seed: int,
    ) -> None:
        self._loop = loop
        self._adapters = adapters
        self._right = right
        self._concurrency = concurrency
        self._random = np.random.default_rng(seed)
        self._open: dict[int, tuple[Adapter, list[int]]] = {}
        self._num_done = self._num_aborted = self._num_read_back = 0
        self._most: dict[str, int] = {"host": 0, "disk": 0, "arrived": 0}
        self._supply: Any = loop.engine._supply
        self._tiers: Any = loop.parts.loader._tiers

    def run(self, num_touches: int, *, tell: bool) -> dict[str, Any]:
        started_s = time.perf_counter()
        order = self._order(num_touches)
        touched: set[str] = set()
        num_steps = 0
        rss: list[int] = []
        for number, adapter in enumerate(order):
            touched.add(adapter.digest)
            while len(self._open) >= self._concurrency:
                num_steps += 1
                self._take(self._loop.step())
                if num_steps % _CHECK_EVERY == 0:
                    self._check_bounds()
                    self._loop.engine.check_integrity()
            self._begin(adapter)
            if self._random.random() < _ABORTED:
                self._abort_one()
            if number % max(1, num_touches // 10) == 0:
                rss.append(psutil.Process().memory_info().rss)
                if tell:
                    print(f"{number} of {num_touches}, {self._num_done} right", file=sys.stderr)
        self._finish()
        self._check_bounds()
        self._read_back()
        self._check_end()
        return {
            "adapters": len(self._adapters),
            "distinct_touched": len(touched),
            "touches": num_touches,
            "right": self._num_done - self._num_read_back,
            "read_back": self._num_read_back,
            "aborted": self._num_aborted,
            "elapsed_s": time.perf_counter() - started_s,
            "most_bytes": self._most,
            "rss_bytes": rss,
            "host": vars_of(self._tiers._host.stats()),
            "disk": vars_of(self._tiers._disk.stats()),
        }

    def _order(self, num_touches: int) -> Iterator[Adapter]:
        """Each adapter once if there are touches enough, then half at random and half by Zipf."""
        count = len(self._adapters)
        everyone = self._random.permutation(count)[:num_touches]
        rest = num_touches - len(everyone)
        weights = 1.0 / np.arange(1, count + 1)
        edges = np.cumsum(weights / weights.sum())
        by_rank = self._random.permutation(count)
        for index in everyone:
            yield self._adapters[index]
        for _ in range(rest):
            if self._random.random() < 0.5:
                yield self._adapters[int(self._random.integers(count))]
            else:
                rank = int(np.searchsorted(edges, self._random.random()))
                yield self._adapters[by_rank[min(rank, count - 1)]]

    def _take(self, outputs: list[Output]) -> None:
        for output in outputs:
            adapter, tokens = self._open[output.handle]
            tokens += output.token_ids
            if not output.finish:
                continue
            del self._open[output.handle]
            if tokens != self._right[adapter.digest]:
                raise BenchError(
                    "WRONG_ANSWER",
                    f"{adapter.name} said {tokens}, alone {self._right[adapter.digest]}",
                )
            self._num_done += 1

    def _finish(self) -> None:
        while self._open:
            self._take(self._loop.step())

    def _read_back(self) -> None:
        """Everything that is left on disk, from there: it says what it said."""
        self._until_idle()
        on_disk = self._loop.parts.loader.residency().disk
        for adapter in self._adapters:
            if adapter.digest in on_disk:
                self._loop.forget_in_pool()
                self._loop.forget_in_host(adapter)
                self._begin(adapter)
                self._finish()
                self._num_read_back += 1

    def _begin(self, adapter: Adapter) -> None:
        handle = self._loop.submit(adapter, prompt_tokens=0, new_tokens=_NEW_TOKENS, prompt=_PROMPT)
        self._open[handle] = (adapter, [])

    def _abort_one(self) -> None:
        handle = list(self._open)[int(self._random.integers(len(self._open)))]
        self._loop.engine.abort(handle)
        del self._open[handle]
        self._num_aborted += 1

    def _check_bounds(self) -> None:
        largest = max((each.nbytes for each in self._supply._arrived), default=0)
        arrived = self._supply._arrived.num_bytes
        held = {
            "host": (self._tiers._host.stats().entry_bytes, self._tiers._host._max_bytes),
            "disk": (self._tiers._disk.stats().entry_bytes, self._tiers._disk._max_bytes),
            "arrived": (arrived, self._supply._max_arrived_bytes + largest),
        }
        for tier, (nbytes, bound) in held.items():
            self._most[tier] = max(self._most[tier], nbytes)
            if nbytes > bound:
                raise BenchError("BOUND_PASSED", f"{tier} holds {nbytes} bytes of {bound}")

    def _tables(self) -> dict[str, int]:
        """Sizes of all that holds something only for a while."""
        loader: Any = self._loop.parts.loader
        return {
            "loading": len(self._supply._loading),
            "queued": len(self._supply._queued),
            "arrived": len(self._supply._arrived),
            "copies": self._supply.resident.copier.num_copies,
            "tasks": len(loader._tasks),
            "cancelled": len(loader._cancelled),
            "flights": len(self._tiers._flights),
            "writes": len(self._tiers._writes),
        }

    def _until_idle(self) -> None:
        deadline_s = time.monotonic() + _SETTLED_S
        while any(self._tables().values()) and time.monotonic() < deadline_s:
            self._loop.step()
        if any(self._tables().values()):
            raise BenchError("LEFT_OVER", f"after the last request: {self._tables()}")

    def _check_end(self) -> None:
        """Nothing is left but what the tiers keep."""
        self._until_idle()
        self._loop.check_empty()
        self._loop.forget_in_pool()
        self._loop.check_empty()
        allocator = self._loop.engine._pool.allocator
        if allocator.num_free != allocator.num_pages:
            raise BenchError("PAGES_LEFT", f"{allocator.num_pages - allocator.num_free} are left")
        gc.collect()
        alive = sum(type(each) is HostAdapter for each in gc.get_objects())
        kept = self._tiers._host.stats().num_entries
        if alive > kept:
            raise BenchError("LEAK", f"{alive} built adapters are alive, {kept} are kept")


def vars_of(stats: Any) -> dict[str, int]:
    return {name: getattr(stats, name) for name in stats.__slots__}


def _alone(folder: Path, adapters: Sequence[Adapter], *, tell: bool) -> dict[str, list[int]]:
    """What each says when nothing else is there."""
    loop = _loop(folder, pool_bytes=8 << 20, host_bytes=8 << 20, disk_bytes=0, disk_dir="")
    right: dict[str, list[int]] = {}
    try:
        for number, adapter in enumerate(adapters):
            handle = loop.submit(adapter, prompt_tokens=0, new_tokens=_NEW_TOKENS, prompt=_PROMPT)
            tokens: list[int] = []
            while len(tokens) < _NEW_TOKENS:
                for output in loop.step():
                    assert output.handle == handle
                    tokens += output.token_ids
            right[adapter.digest] = tokens
            loop.forget_in_pool()
            if tell and number % 1000 == 0:
                print(f"alone: {number} of {len(adapters)}", file=sys.stderr)
    finally:
        loop.stop()
    answers = {tuple(tokens) for tokens in right.values()}
    if len(answers) < len(adapters) // 4:
        raise BenchError("ADAPTERS_ALIKE", f"{len(adapters)} adapters say {len(answers)} things")
    return right


def _write_adapters(folder: Path, count: int) -> list[Adapter]:
    adapters: list[Adapter] = []
    for number in range(count):
        path = folder / "adapters" / f"a{number}"
        write_adapter(
            path,
            SHAPES["tiny"],
            rank=_RANKS[number % len(_RANKS)],
            seed=number,
            targets=ATTENTION,
            scale=0.5,
        )
        adapters.append(adapter_at(path))
    return adapters


def _loop(
    folder: Path, *, pool_bytes: int, host_bytes: int, disk_bytes: int, disk_dir: str
) -> StepLoop:
    options = EngineOptions(
        model_dir=str(folder / "model"),
        model_name="bench",
        device="cpu",
        dtype="float32",
        pool_bytes=pool_bytes,
        max_running=8,
        max_context_tokens=64,
        host_cache_bytes=host_bytes,
        disk_cache_bytes=disk_bytes,
        disk_cache_dir=disk_dir,
        adapter_roots=(str(folder),),
    )
    return StepLoop(options, vocab_size=SHAPES["tiny"].vocab_size)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
