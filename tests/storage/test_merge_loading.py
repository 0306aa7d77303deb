"""Merges on their way through sources and tiers."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.adapter.manifest import digest_of
from storage.disk_tier import DiskTier
from storage.errors import (
    AdapterTooLargeError,
    DigestMismatchError,
    NonFiniteError,
    SourceNotFoundError,
    SourceUnavailableError,
    StorageError,
)
from storage.files import AdapterFiles
from storage.flight import AdapterRef
from storage.host_tier import HostTier
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.loader import TieredLoader
from storage.merge import arithmetic
from storage.merge.combine import merged_files
from storage.merge.recipe import Component, Recipe, make_recipe
from storage.sources import ANYBODY, Access, SourceRouter
from storage.sources import merge as merge_module
from storage.sources.merge import MergeSource
from storage.sources.slots import origin_of
from tests.helpers.fake_control_plane import eventually
from tests.storage.merge_samples import (
    DIGESTS,
    PARTS,
    MemorySource,
    components,
    digest,
    made,
    ordered,
)
from tests.storage.samples import config, files, key, lora_tensors, safetensors


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = MemorySource()
        self.limits = DEFAULT_LIMITS

    def router(self, disk: DiskTier | None) -> SourceRouter:
        sources: dict[str, Any] = {"mem": self.source}
        sources["merge"] = MergeSource(SourceRouter(dict(sources)), disk, self.limits)
        return SourceRouter(sources)

    def disk(self) -> DiskTier:
        return DiskTier(self.root, 1 << 20)

    def loader(self, disk: DiskTier | None) -> TieredLoader[str]:
        host: HostTier[str] = HostTier(1 << 20)
        return TieredLoader(
            self.router(disk), disk, host, lambda parsed: (parsed.manifest.digest, 1)
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    yield Bench(tmp_path)


RECIPE = make_recipe("ties", components(), density=0.5)
REF = AdapterRef(digest(RECIPE), RECIPE.uri)


async def test_a_merge_is_built_once_and_kept_on_disk_with_its_components(bench: Bench) -> None:
    loader = bench.loader(bench.disk())
    assert await loader.load(REF) == REF.digest
    await loader.flush()
    assert loader.residency().disk == {REF.digest, *DIGESTS}
    assert sorted(bench.source.fetched) == sorted(bench.source.contents)
    assert loader.recent_timings()[0].origin == "merge"
    other = make_recipe("cat", components((0.5, 0.5)))
    assert await loader.load(AdapterRef(digest(other), other.uri)) == digest(other)
    assert len(bench.source.fetched) == 3, "components were on disk"
    await loader.aclose()
    bench.source.contents.clear()
    again = bench.loader(bench.disk())  # a data plane that starts again
    assert await again.load(REF) == REF.digest
    assert len(bench.source.fetched) == 3
    await again.aclose()


async def test_without_a_disk_components_come_from_their_sources(bench: Bench) -> None:
    files_ = await bench.router(None).fetch(RECIPE.uri)
    assert digest_of(files_.config, files_.weights) == REF.digest
    assert files_.uri == RECIPE.uri and len(bench.source.fetched) == 3


async def test_a_damaged_component_on_disk_is_had_anew(bench: Bench) -> None:
    disk = bench.disk()
    for part, its_digest in zip(PARTS, DIGESTS, strict=True):
        await disk.put(its_digest, part)
    damaged = bench.root / DIGESTS[1] / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\0\0\0")
    files_ = await bench.router(disk).fetch(RECIPE.uri)
    assert digest_of(files_.config, files_.weights) == REF.digest
    assert bench.source.fetched == ["mem://h1/x"]


async def test_other_content_is_refused_by_component(bench: Bench) -> None:
    bench.source.contents["mem://h2/x"] = files(7)
    loader = bench.loader(bench.disk())
    with pytest.raises(DigestMismatchError, match="component part2@1") as caught:
        await loader.load(REF)
    assert caught.value.metadata["component"] == "part2@1"
    del bench.source.contents["mem://h2/x"]
    with pytest.raises(SourceNotFoundError, match="component part2@1"):
        await loader.load(REF)
    await loader.aclose()


async def test_bad_values_in_a_component_are_refused(bench: Bench) -> None:
    tensors = lora_tensors(seed=4)
    name = key(0, "self_attn.q_proj", "A")
    dtype, shape, data = tensors[name]
    tensors[name] = dtype, shape, np.float32(math.nan).tobytes() + data[4:]
    bad = AdapterFiles(config(), safetensors(tensors), "")
    listed = [Component("bad@1", 1.0, digest_of(bad.config, bad.weights), "mem://bad/x")]
    bench.source.contents["mem://bad/x"] = bad
    with pytest.raises(NonFiniteError, match="component bad@1"):
        await bench.router(None).fetch(make_recipe("cat", listed).uri)


async def test_a_merge_that_is_not_what_was_registered_is_refused(bench: Bench) -> None:
    loader = bench.loader(None)
    with pytest.raises(DigestMismatchError):
        await loader.load(AdapterRef("0" * 64, RECIPE.uri))
    await loader.aclose()


async def test_components_and_result_are_bounded(bench: Bench) -> None:
    size = len(PARTS[0].weights)
    bench.limits = AdapterLimits(max_weights_bytes=2 * size)
    with pytest.raises(AdapterTooLargeError, match="together"):
        await bench.router(None).fetch(RECIPE.uri)
    assert len(bench.source.fetched) == 3
    for room in (0, -1):
        limits = AdapterLimits(max_weights_bytes=len(made(RECIPE).weights) + room)
        if room == 0:
            assert merged_files(RECIPE, ordered(RECIPE), limits) == made(RECIPE)
        else:
            with pytest.raises(AdapterTooLargeError, match="float32"):
                merged_files(RECIPE, ordered(RECIPE), limits)


async def test_no_token_reaches_a_component(bench: Bench) -> None:
    with pytest.raises(StorageError) as caught:
        await bench.router(None).fetch(RECIPE.uri, Access("secret"))
    assert caught.value.reason == "TOKEN_UNSUPPORTED" and not bench.source.fetched


async def test_a_load_that_is_given_up_stops_its_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, ended = threading.Event(), threading.Event()

    def endless(recipe: Recipe, parts: Any, limits: AdapterLimits, check: Any) -> Any:
        entered.set()
        try:
            for _ in range(10_000):
                check()
                time.sleep(0.001)
        finally:
            ended.set()

    monkeypatch.setattr(merge_module, "merged_files", endless)
    loader = bench.loader(None)
    load = asyncio.create_task(loader.load(REF))
    await eventually(entered.is_set)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    await eventually(ended.is_set)
    monkeypatch.undo()
    assert await loader.load(REF) == REF.digest
    await loader.aclose()


async def test_merging_does_not_hold_up_the_event_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    real = arithmetic.widened

    def widened(data: memoryview, dtype: str) -> Any:
        threads.add(threading.get_ident())
        return real(data, dtype)

    monkeypatch.setattr(arithmetic, "widened", widened)
    await bench.router(None).fetch(RECIPE.uri)
    assert threads and threading.get_ident() not in threads


async def test_few_merges_have_components_in_memory(bench: Bench) -> None:
    """However many there are, and whatever they are made of."""
    go_on = asyncio.Event()
    real = bench.source.fetch

    async def fetch(uri: str, access: Access = ANYBODY) -> AdapterFiles:
        files = await real(uri, access)
        await go_on.wait()
        return files

    bench.source.fetch = fetch
    router = bench.router(None)
    recipes = [make_recipe("cat", components((1.0, 0.5 + n))) for n in range(9)]
    fetches = [asyncio.create_task(router.fetch(each.uri)) for each in recipes]
    await eventually(lambda: len(bench.source.fetched) == 2)
    fetches[0].cancel()
    await eventually(lambda: len(bench.source.fetched) == 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(bench.source.fetched) == 3
    go_on.set()
    assert len(await asyncio.gather(*fetches[1:])) == 8


async def test_merges_whose_components_hang_hold_up_no_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_module, "_PATIENCE_S", 0.02)
    real, go_on = bench.source.fetch, asyncio.Event()

    async def fetch(uri: str, access: Access = ANYBODY) -> AdapterFiles:
        files = await real(uri, access)
        if uri == "mem://h1/x":
            await go_on.wait()
        return files

    bench.source.fetch = fetch
    router = bench.router(None)

    def hanging(number: int) -> asyncio.Task[AdapterFiles]:
        recipe = make_recipe("cat", components((1.0, 0.5 + number)))
        return asyncio.create_task(router.fetch(recipe.uri))

    alone = [hanging(number) for number in range(2)]
    await asyncio.sleep(0.1)
    assert not any(each.done() for each in alone), "nobody else wants their places"
    more = [hanging(number) for number in range(2, 6)]
    await asyncio.sleep(0)  # they are before the sound one
    sound = make_recipe("cat", components((1.0,)))
    async with asyncio.timeout(10):
        assert (await router.fetch(sound.uri)).uri == sound.uri
    ended = [each for each in (*alone, *more) if each.done()]
    problems = [each.exception() for each in ended]
    assert problems and all(isinstance(each, SourceUnavailableError) for each in problems)
    waiting = [each for each in (*alone, *more) if not each.done()]
    assert waiting[:2] == alone, "who came first goes on, slowly"
    assert len(waiting) <= 4
    waiting[0].cancel()
    go_on.set()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert len(await asyncio.gather(*waiting[1:])) == len(waiting) - 1
    # All places are free again.
    again = [hanging(number) for number in range(9)]
    assert len(await asyncio.gather(*again)) == 9


def test_merges_wait_for_those_of_the_same_origins_only() -> None:
    one = make_recipe("cat", components((1.0, 2.0)))
    other = make_recipe("linear", components((3.0, 2.0)))
    assert origin_of(one.uri) == origin_of(other.uri) == "mem://h0 mem://h1"
    assert origin_of(make_recipe("cat", components((1.0,))).uri) == "mem://h0"
    assert origin_of("merge:nonsense") == "merge:"
