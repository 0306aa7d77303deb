"""The loader's threads: one core each, results once, cancellations heeded."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from dataplane.channel import Adapter
from dataplane.lora.layout import HostAdapter
from dataplane.lora.loader import LoadResult, ThreadedLoader
from storage.adapter.manifest import ParsedAdapter, digest_of
from storage.errors import AdapterTooLargeError, SourceNotFoundError
from storage.limits import AdapterLimits
from storage.sources import SourceOptions
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.waiting import PATIENCE_S, until


class Bench:
    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.gate = threading.Event()
        self.gate.set()
        self.building = threading.Event()
        self.threads: list[tuple[int, int]] = []  # torch's threads, niceness
        self.built: list[str] = []
        self.block_bytes = 0
        self.woken = threading.Event()
        self.loader = ThreadedLoader(
            self.build,
            sources=SourceOptions(roots=[root]),
            host_bytes=1 << 20,
            disk_bytes=1 << 20,
            disk_dir=str(root / "disk"),
            on_result=self.woken.set,
            **options,
        )

    def build(self, parsed: ParsedAdapter) -> HostAdapter:
        niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        self.threads.append((torch.get_num_threads(), niceness))
        self.building.set()
        assert self.gate.wait(60)
        self.built.append(parsed.manifest.digest)
        pages = torch.zeros(1, 3, 8)
        return HostAdapter(
            parsed.manifest.digest, cast(Any, None), pages, block_bytes=self.block_bytes
        )

    def adapter(self, seed: int) -> Adapter:
        path = make_adapter_dir(self.root / f"a{seed}", seed=seed)
        files = [(path / name).read_bytes() for name in os.listdir(path)]
        files.sort(key=len)
        return Adapter(digest_of(files[0], files[1]), str(path), path.name)

    def results(self, number: int) -> list[LoadResult]:
        found: list[LoadResult] = []
        until_s = time.monotonic() + PATIENCE_S
        while len(found) < number and time.monotonic() < until_s:
            self.woken.wait(0.05)
            self.woken.clear()
            found += self.loader.results()
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.loader.start()
    yield bench
    bench.gate.set()
    bench.loader.stop()


def test_the_limit_of_an_adapters_size_is_the_operators(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limits=AdapterLimits(max_weights_bytes=100))
    bench.loader.start()
    try:
        bench.loader.request(bench.adapter(1))
        (result,) = bench.results(1)
        assert isinstance(result.error, AdapterTooLargeError), result.error
    finally:
        bench.loader.stop()


def test_host_memory_counts_the_blocks_that_adapters_take(bench: Bench) -> None:
    bench.block_bytes = 128
    bench.loader.request(bench.adapter(1))
    assert [each.error for each in bench.results(1)] == [None]
    tiers = {each.tier: each for each in bench.loader.report().tiers}
    assert tiers["host"].size_bytes == 128


def test_builders_use_one_core_and_give_way(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    bench = Bench(tmp_path)
    try:
        bench.loader.start()
        bench.loader.request(bench.adapter(1))
        assert [each.error for each in bench.results(1)] == [None]
        assert torch.get_num_threads() == 2, "the step loop keeps its own"
    finally:
        bench.loader.stop()
        torch.set_num_threads(before)
    ((num_threads, niceness),) = bench.threads
    assert num_threads == 1
    if sys.platform == "linux":
        assert niceness > os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_second_request_joins_the_first(bench: Bench) -> None:
    bench.gate.clear()
    wanted = bench.adapter(1)
    bench.loader.request(wanted, priority=-1000.0, speculative=True)
    assert bench.building.wait(60)
    bench.loader.request(wanted)
    bench.gate.set()
    (result,) = bench.results(1)
    assert result.digest == wanted.digest and result.adapter is not None
    time.sleep(0.05)
    assert bench.loader.results() == [] and bench.built == [wanted.digest]


def test_a_cancelled_load_gives_no_result_and_can_be_asked_for_again(bench: Bench) -> None:
    bench.gate.clear()
    wanted = bench.adapter(1)
    bench.loader.request(wanted)
    assert bench.building.wait(60)
    bench.loader.cancel(wanted.digest)
    bench.loader.cancel("0" * 64)
    bench.gate.set()
    other = bench.adapter(2)
    bench.loader.request(other)
    assert [each.digest for each in bench.results(1)] == [other.digest]
    bench.loader.request(wanted)
    (again,) = bench.results(1)
    assert again.digest == wanted.digest and again.adapter is not None


def test_residency_follows_loads_writes_pins_and_discards(bench: Bench) -> None:
    wanted = bench.adapter(1)
    bench.loader.pin(wanted.digest)
    bench.loader.request(wanted)
    bench.results(1)
    assert bench.loader.residency().host == {wanted.digest}
    until(lambda: wanted.digest in bench.loader.residency().disk)
    (timings,) = bench.loader.recent_timings()
    assert (timings.tier, timings.digest) == ("source", wanted.digest)
    bench.loader.discard(wanted.digest)
    until(lambda: not bench.loader.residency().host)
    bench.loader.request(wanted)
    bench.results(1)
    assert bench.loader.recent_timings()[-1].tier == "disk"
    bench.loader.unpin(wanted.digest)


def test_failures_are_results(bench: Bench) -> None:
    bench.loader.request(Adapter("0" * 64, str(bench.root / "nowhere"), "x"))
    (result,) = bench.results(1)
    assert result.adapter is None and isinstance(result.error, SourceNotFoundError)


def test_progress_and_failures_are_reported(bench: Bench) -> None:
    wanted, missing = bench.adapter(1), Adapter("0" * 64, str(bench.root / "nowhere"), "nowhere")
    bench.gate.clear()
    bench.loader.request(wanted)
    assert bench.building.wait(60)
    (loading,) = bench.loader.report().loading
    assert (loading.digest, loading.origin, loading.state) == (wanted.digest, "file", "building")
    assert loading.received_bytes == loading.total_bytes > 0
    assert loading.waited_s > 0
    bench.gate.set()
    assert bench.results(1)[0].error is None
    bench.loader.request(missing)
    assert bench.results(1)[0].error is not None
    until(lambda: len(bench.loader.report().loads) == 2)
    report = bench.loader.report()
    assert (report.loading, report.num_loading) == ([], 0)
    assert [(each.origin, each.outcome, each.num_loads) for each in report.loads] == [
        ("file", "OK", 1),
        ("file", "SOURCE_NOT_FOUND", 1),
    ]
    host, disk = report.tiers
    assert (host.tier, host.num_adapters, host.size_bytes) == ("host", 1, 96)
    assert (host.max_bytes, host.num_misses, host.num_hits) == (1 << 20, 2, 0)
    assert (disk.tier, disk.max_bytes, disk.num_misses) == ("disk", 1 << 20, 2)
    ended, failed = bench.loader.recent_loads()
    assert (ended.digest, ended.reason) == (wanted.digest, "")
    assert (failed.digest, failed.reason) == (missing.digest, "SOURCE_NOT_FOUND")
    assert ended.age_s > failed.age_s > 0 and failed.message
