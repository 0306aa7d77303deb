import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from storage import loader as loader_module
from storage.adapter.manifest import ParsedAdapter, digest_of
from storage.disk_tier import DiskTier
from storage.errors import (
    DigestMismatchError,
    LoaderClosedError,
    NonFiniteError,
    SourceNotFoundError,
    StorageError,
)
from storage.files import WEIGHTS_NAME, AdapterFiles
from storage.flight import AdapterRef
from storage.host_tier import HostTier
from storage.loader import TieredLoader
from storage.reload_costs import ReloadCosts
from storage.sources import ANYBODY, Access, Progress, SourceRouter
from tests.helpers.waiting import eventually
from tests.storage.samples import config, files, key, lora_tensors, safetensors

SAMPLE = files(1)
DIGEST = digest_of(SAMPLE.config, SAMPLE.weights)
REF = AdapterRef(DIGEST, "mem://good")
Value = tuple[str, int]


class MemorySource:
    """Serves what it is given, when `gate` is open; counts and notes cancellations."""

    def __init__(self) -> None:
        self.contents: dict[str, AdapterFiles] = {"mem://good": SAMPLE}
        self.gate = asyncio.Event()
        self.gate.set()
        self.fetched: list[str] = []
        self.arrived: list[int] = []  # bytes that each fetch tells of
        self.cancelled = 0

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        self.fetched.append(uri)
        if access.on_progress is not None:
            for done in (0, *self.arrived):
                access.on_progress(Progress(WEIGHTS_NAME, done, 4000))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if uri not in self.contents:
            raise SourceNotFoundError(f"no {uri}")
        return self.contents[uri]


class Bench:
    def __init__(self, root: Path) -> None:
        self.source = MemorySource()
        self.disk = DiskTier(root, 1 << 20)
        self.host: HostTier[Value] = HostTier(1 << 20)
        self.builds: list[str] = []
        self.build_threads: set[int] = set()
        self.loader = self.make(self.disk)

    def make(
        self,
        disk: DiskTier | None,
        build: Callable[[ParsedAdapter], tuple[Value, int]] | None = None,
        max_concurrent_loads: int = 16,
    ) -> TieredLoader[Value]:
        return TieredLoader(
            SourceRouter({"mem": self.source}),
            disk,
            self.host,
            build or self.build,
            max_concurrent_loads=max_concurrent_loads,
        )

    def build(self, parsed: ParsedAdapter) -> tuple[Value, int]:
        self.builds.append(parsed.manifest.digest)
        self.build_threads.add(threading.get_ident())
        return (parsed.manifest.digest, parsed.manifest.size_bytes), parsed.manifest.size_bytes


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.source.gate.set()
    await bench.loader.aclose()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_source_then_host_then_disk(bench: Bench) -> None:
    first = await bench.loader.load(REF)
    assert first[0] == DIGEST
    assert await bench.loader.load(REF) is first
    assert bench.source.fetched == ["mem://good"]
    await bench.loader.flush()
    assert bench.loader.residency().host == bench.loader.residency().disk == {DIGEST}
    bench.host.discard(DIGEST)
    assert bench.loader.residency().host == frozenset()
    assert await bench.loader.load(REF) == first
    assert bench.source.fetched == ["mem://good"], "the disk had it"
    assert [t.tier for t in bench.loader.recent_timings()] == ["source", "disk"]
    for timing in bench.loader.recent_timings():
        assert timing.size_bytes == first[1]
        assert min(timing.read_s, timing.parse_s, timing.build_s) > 0
    assert threading.get_ident() not in bench.build_threads


async def test_works_without_a_disk(bench: Bench) -> None:
    loader = bench.make(None)
    await loader.load(REF)
    assert loader.residency().disk == frozenset()
    await loader.aclose()


async def test_concurrent_callers_share_one_load(bench: Bench) -> None:
    bench.source.gate.clear()
    callers = [asyncio.create_task(bench.loader.load(REF)) for _ in range(20)]
    await eventually(lambda: bench.source.fetched)
    await settle()
    bench.source.gate.set()
    values = await asyncio.gather(*callers)
    assert all(value is values[0] for value in values)
    assert len(bench.source.fetched) == len(bench.builds) == 1


async def test_different_adapters_do_not_wait_for_each_other(bench: Bench) -> None:
    other = files(2)
    digest = digest_of(other.config, other.weights)
    await bench.disk.put(digest, other)
    loader = bench.make(bench.disk, max_concurrent_loads=1)
    bench.source.gate.clear()
    stuck = asyncio.create_task(loader.load(REF))
    await eventually(lambda: bench.source.fetched)
    value = await asyncio.wait_for(loader.load(AdapterRef(digest, "mem://x")), 30)
    assert value[0] == digest
    assert not stuck.done()
    bench.source.gate.set()
    await stuck
    await loader.aclose()


async def test_one_cancellation_leaves_the_others(bench: Bench) -> None:
    bench.source.gate.clear()
    first = asyncio.create_task(bench.loader.load(REF))
    second = asyncio.create_task(bench.loader.load(REF))
    await eventually(lambda: bench.source.fetched)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    bench.source.gate.set()
    assert (await second)[0] == DIGEST
    assert bench.source.cancelled == 0


async def test_last_cancellation_stops_the_load_and_the_next_starts_afresh(bench: Bench) -> None:
    bench.source.gate.clear()
    callers = [asyncio.create_task(bench.loader.load(REF)) for _ in range(3)]
    await eventually(lambda: len(bench.source.fetched) == 1)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    again = asyncio.create_task(bench.loader.load(REF))
    await eventually(lambda: len(bench.source.fetched) == 2)
    assert bench.source.cancelled == 1
    bench.source.gate.set()
    assert (await again)[0] == DIGEST


async def test_failures_reach_every_caller_and_are_not_remembered(bench: Bench) -> None:
    ref = AdapterRef(DIGEST, "mem://late")
    bench.source.gate.clear()
    callers = [asyncio.create_task(bench.loader.load(ref)) for _ in range(3)]
    await eventually(lambda: bench.source.fetched)
    bench.source.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [SourceNotFoundError] * 3
    assert len(bench.source.fetched) == 1
    bench.source.contents["mem://late"] = SAMPLE
    assert (await bench.loader.load(ref))[0] == DIGEST


async def test_anothers_broken_source_does_not_fail_mine(bench: Bench) -> None:
    bench.source.gate.clear()
    broken = asyncio.create_task(bench.loader.load(AdapterRef(DIGEST, "mem://broken")))
    await settle()
    mine = asyncio.create_task(bench.loader.load(REF))
    await settle()
    await eventually(lambda: bench.source.fetched)
    bench.source.gate.set()
    assert (await mine)[0] == DIGEST
    with pytest.raises(SourceNotFoundError):
        await broken


async def test_changed_content_is_refused_and_kept_nowhere(bench: Bench) -> None:
    bench.source.contents["mem://good"] = files(2)
    with pytest.raises(DigestMismatchError, match="register it as a new version") as caught:
        await bench.loader.load(REF)
    assert caught.value.metadata["expected"] == DIGEST
    assert caught.value.metadata["found"] != DIGEST
    await bench.loader.flush()
    residency = bench.loader.residency()
    assert residency.host == residency.disk == frozenset()
    assert bench.builds == []


async def test_bad_content_is_refused_and_kept_nowhere(bench: Bench) -> None:
    tensors = lora_tensors()
    name = key(0, "self_attn.q_proj", "A")
    kind, shape, raw = tensors[name]
    tensors[name] = (kind, shape, b"\x00\x00\x80\x7f" + raw[4:])
    bad = AdapterFiles(config(), safetensors(tensors), "")
    bench.source.contents["mem://bad"] = bad
    with pytest.raises(NonFiniteError):
        await bench.loader.load(AdapterRef(digest_of(bad.config, bad.weights), "mem://bad"))
    await bench.loader.flush()
    assert bench.loader.residency().disk == frozenset()


async def test_a_disk_that_hangs_holds_nobody_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_WRITE_PATIENCE_S", 0.05)
    gate = asyncio.Event()
    honest = bench.disk.put

    async def hang(digest: str, files: AdapterFiles) -> None:
        await gate.wait()
        await honest(digest, files)

    monkeypatch.setattr(bench.disk, "put", hang)
    for seed in range(7):
        sample = files(seed + 20)
        uri = f"mem://{seed}"
        bench.source.contents[uri] = sample
        ref = AdapterRef(digest_of(sample.config, sample.weights), uri)
        assert (await asyncio.wait_for(bench.loader.load(ref), 30))[0] == ref.digest
    gate.set()
    await bench.loader.flush()
    assert len(bench.loader.residency().disk) == 4, "as many as may be in memory for it"


async def test_a_disk_that_is_slow_gets_all_that_many_loads_at_once_bring(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_WRITE_PATIENCE_S", 60.0)
    honest = bench.disk.put

    async def slow(digest: str, files: AdapterFiles) -> None:
        await asyncio.sleep(0.01)
        await honest(digest, files)

    monkeypatch.setattr(bench.disk, "put", slow)
    refs: list[AdapterRef] = []
    for seed in range(16):
        sample = files(seed + 40)
        uri = f"mem://many/{seed}"
        bench.source.contents[uri] = sample
        refs.append(AdapterRef(digest_of(sample.config, sample.weights), uri))
    await asyncio.gather(*(bench.loader.load(ref) for ref in refs))
    await bench.loader.flush()
    assert bench.loader.residency().disk == {ref.digest for ref in refs}


async def test_what_build_refuses_is_not_kept(bench: Bench) -> None:
    def refuse(parsed: ParsedAdapter) -> tuple[Value, int]:
        raise MemoryError(parsed.manifest.digest)

    loader = bench.make(bench.disk, refuse)
    with pytest.raises(MemoryError):
        await loader.load(REF)
    await loader.aclose()
    assert loader.residency().host == loader.residency().disk == frozenset()


async def test_damaged_disk_entry_is_fetched_again(bench: Bench, tmp_path: Path) -> None:
    await bench.loader.load(REF)
    await bench.loader.flush()
    bench.host.discard(DIGEST)
    (tmp_path / DIGEST / WEIGHTS_NAME).write_bytes(b"rot")
    assert (await bench.loader.load(REF))[0] == DIGEST
    assert len(bench.source.fetched) == 2
    await bench.loader.flush()
    assert await bench.disk.get(DIGEST) is not None


async def test_full_tiers_do_not_stop_serving(bench: Bench, tmp_path: Path) -> None:
    bench.host = HostTier(10)
    loader = bench.make(DiskTier(tmp_path / "small", 10))
    assert (await loader.load(REF))[0] == DIGEST
    await loader.flush()
    assert loader.residency().host == loader.residency().disk == frozenset()
    await loader.aclose()


async def test_many_loads_are_bounded(bench: Bench) -> None:
    loader = bench.make(None, max_concurrent_loads=2)
    bench.source.gate.clear()
    refs: list[AdapterRef] = []
    for seed in range(5):
        sample = files(seed + 10)
        uri = f"mem://one-host/{seed}"
        bench.source.contents[uri] = sample
        refs.append(AdapterRef(digest_of(sample.config, sample.weights), uri))
    tasks = [asyncio.create_task(loader.load(ref)) for ref in refs]
    await eventually(lambda: len(bench.source.fetched) >= 2)
    await settle()
    assert len(bench.source.fetched) == 2
    bench.source.gate.set()
    assert [value[0] for value in await asyncio.gather(*tasks)] == [ref.digest for ref in refs]
    await loader.aclose()


async def test_closing_ends_loads_and_refuses_new_ones(bench: Bench) -> None:
    bench.source.gate.clear()
    waiting = asyncio.create_task(bench.loader.load(REF))
    await eventually(lambda: bench.source.fetched)
    await bench.loader.aclose()
    with pytest.raises(LoaderClosedError):
        await waiting
    with pytest.raises(LoaderClosedError):
        await bench.loader.load(REF)
    assert bench.source.cancelled == 1


@pytest.mark.parametrize("digest", ["", "..", "A" * 64, "x" * 1000])
async def test_what_is_no_digest_is_refused(bench: Bench, digest: str) -> None:
    with pytest.raises(StorageError) as caught:
        await bench.loader.load(AdapterRef(digest, "mem://good"))
    assert len(caught.value.message) < 400
    assert bench.source.fetched == []


async def test_a_queued_load_rises_with_the_priority_of_who_joins_it(bench: Bench) -> None:
    others = {f"mem://good/{n}": files(n) for n in (2, 3)}
    bench.source.contents.update(others)
    refs = [REF, *(AdapterRef(digest_of(f.config, f.weights), uri) for uri, f in others.items())]
    loader = bench.make(None, max_concurrent_loads=1)
    bench.source.gate.clear()
    first = asyncio.create_task(loader.load(refs[0]))
    await eventually(lambda: bench.source.fetched)
    demand = asyncio.create_task(loader.load(refs[1]))
    guess = asyncio.create_task(loader.load(refs[2], priority=-100, speculative=True))
    await settle()
    urgent = asyncio.create_task(loader.load(refs[2], priority=5))
    await settle()
    bench.source.gate.set()
    await asyncio.gather(first, demand, guess, urgent)
    assert bench.source.fetched == ["mem://good", "mem://good/3", "mem://good/2"]
    await loader.aclose()


async def test_a_guess_takes_no_room_from_what_is_in_demand(bench: Bench) -> None:
    other = files(2)
    bench.source.contents["mem://2"] = other
    await bench.loader.load(REF)
    size = bench.host.stats().entry_bytes
    for _ in range(3):
        await bench.loader.load(REF)
    bench.host = HostTier(size + 1)
    loader = bench.make(None)
    await loader.load(REF)
    await loader.load(REF)
    ref = AdapterRef(digest_of(other.config, other.weights), "mem://2")
    await loader.load(ref, speculative=True)
    assert bench.host.digests() == {DIGEST}
    await loader.load(ref)
    assert bench.host.digests() == {ref.digest}
    await loader.aclose()


async def test_costs_are_those_of_the_tier_that_would_be_asked(bench: Bench) -> None:
    await bench.loader.load(REF)
    (timing,) = bench.loader.recent_timings()
    seconds = timing.read_s + timing.parse_s + timing.build_s
    assert timing.queue_s >= 0
    await bench.loader.flush()
    nominal = ReloadCosts()
    assert bench.loader.reload_s(DIGEST, 1000) == nominal.seconds("disk", 1000)
    measured = bench.loader.reload_s("0" * 64, timing.size_bytes)
    assert measured == pytest.approx(seconds, rel=0.01)
