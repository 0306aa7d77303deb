"""Merges on their way through sources and tiers, and what makes their bits the same everywhere."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.adapter.manifest import ParsedAdapter, digest_of, parse_adapter
from storage.disk_tier import DiskTier
from storage.errors import (
    AdapterTooLargeError,
    DigestMismatchError,
    MergeRefusedError,
    NonFiniteError,
    SourceNotFoundError,
    StorageError,
)
from storage.files import AdapterFiles
from storage.flight import AdapterRef
from storage.host_tier import HostTier
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.loader import TieredLoader
from storage.merge import arithmetic
from storage.merge.combine import merged_files
from storage.merge.recipe import Component, Recipe, make_recipe, parse_recipe
from storage.sources import ANYBODY, Access, SourceRouter
from storage.sources import merge as merge_module
from storage.sources.merge import MergeSource
from storage.sources.slots import origin_of
from tests.helpers.fake_control_plane import eventually
from tests.storage.samples import config, files, key, lora_tensors, safetensors


def sample(step: int) -> AdapterFiles:
    """An adapter on q_proj whose values no library draws."""
    tensors = lora_tensors()
    for number, (name, (dtype, shape, data)) in enumerate(tensors.items()):
        counted = np.arange(len(data) // 4, dtype=np.int64) * step + number * 17
        values = ((counted % 997 - 498) / 997).astype("<f4")
        tensors[name] = dtype, shape, values.tobytes()
    return AdapterFiles(config(), safetensors(tensors), "test://sample")


PARTS = [sample(step) for step in (31, 577, 811)]
DIGESTS = [digest_of(part.config, part.weights) for part in PARTS]


class MemorySource:
    def __init__(self) -> None:
        self.contents = {f"mem://h{n}/x": part for n, part in enumerate(PARTS)}
        self.fetched: list[str] = []
        self.tokens: list[str] = []

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        self.fetched.append(uri)
        self.tokens.append(access.token)
        if uri not in self.contents:
            raise SourceNotFoundError(f"no {uri}")
        return self.contents[uri]


def components(weights: tuple[float, ...] = (1.0, 0.5, -2.0)) -> list[Component]:
    return [
        Component(f"part{n}@1", weight, DIGESTS[n], f"mem://h{n}/x")
        for n, weight in enumerate(weights)
    ]


def ordered(recipe: Recipe, parts: list[AdapterFiles] = PARTS) -> list[ParsedAdapter]:
    parsed = [parse_adapter(part.config, part.weights) for part in parts]
    by_digest = {each.manifest.digest: each for each in parsed}
    return [by_digest[component.digest] for component in recipe.components]


def made(recipe: Recipe) -> AdapterFiles:
    return merged_files(recipe, ordered(recipe), DEFAULT_LIMITS)


def digest(recipe: Recipe) -> str:
    merged = made(recipe)
    return digest_of(merged.config, merged.weights)


# What was registered must be built again by every later version of this code: these stay.
GOLDEN: dict[str, tuple[dict[str, Any], str]] = {
    "cat": ({}, "80f60950f1828625e63932ff5569fcb4575346e59f0f6fa716ad0c2c1aaf51c2"),
    "linear": ({}, "45887af617d718f4ca4a2d6343ce193a746b843ffbf493764e243fa601f4c26d"),
    "ties": ({"density": 0.5}, "c07cfbc0daef9be32e3f671e26068413c7e9c98bdedb078b13ba0680a023a35b"),
    "magnitude_prune": (
        {"density": 0.5},
        "3e01c8338c03c1631935baba90320033d233236afb4ce9c4556dba25bbd9fc45",
    ),
    "dare_linear": (
        {"density": 0.5, "seed": 3},
        "93556bea3fc816f91d923ec64caf97fcfabfb5342f764473d05540150c2ed858",
    ),
    "dare_ties": (
        {"density": 0.5, "majority_sign": "frequency"},
        "37c072c9046392198262f869d496525b0a33982609d854818b0d16c302d8be48",
    ),
}


@pytest.mark.parametrize("strategy", GOLDEN)
def test_digests_never_change(strategy: str) -> None:
    options, expected = GOLDEN[strategy]
    assert digest(make_recipe(strategy, components(), **options)) == expected


@pytest.mark.parametrize("strategy", GOLDEN)
def test_threads_that_flush_denormals_come_to_the_same(strategy: str) -> None:
    """As the engine's do, and the control plane's do not."""
    torch = pytest.importorskip("torch")
    tensors = lora_tensors(seed=50)
    for name, (dtype, shape, data) in tensors.items():
        values = np.frombuffer(data, "<f4").copy()
        values[::2] *= np.float32(1e-38)  # denormal ones, and products that become so
        values[::3] *= np.float32(1e-20)
        tensors[name] = dtype, shape, values.tobytes()
    tiny = AdapterFiles(config(), safetensors(tensors), "")
    parts = [tiny, *PARTS[:2]]
    listed = [
        Component(f"p{n}@1", 0.25, digest_of(part.config, part.weights), "mem://x")
        for n, part in enumerate(parts)
    ]
    recipe = make_recipe(strategy, listed, **GOLDEN[strategy][0])
    results: dict[bool, AdapterFiles] = {}

    def work(flushes: bool) -> None:
        torch.set_flush_denormal(flushes)
        results[flushes] = merged_files(recipe, ordered(recipe, parts), DEFAULT_LIMITS)

    for flushes in (True, False):
        thread = threading.Thread(target=work, args=(flushes,))
        thread.start()
        thread.join()
    torch.set_flush_denormal(False)
    assert results[True].weights == results[False].weights
    bits = np.frombuffer(results[True].weights, np.uint8)
    assert bits.any()


def test_equal_magnitudes_are_kept_in_order() -> None:
    values = np.array([1, -2, 2, 0.5, 2, -2, 3], np.float32)
    kept = arithmetic.keep_largest(values, 0.5)
    assert kept.tolist() == [0, -2, 2, 0, 0, 0, 3]
    assert arithmetic.keep_largest(values, 0.1).tolist() == [0] * 7
    assert arithmetic.keep_largest(values, 1.0).tolist() == values.tolist()


def test_narrow_dtypes_are_widened_exactly() -> None:
    for dtype in ("F16", "BF16"):
        part = AdapterFiles(config(), safetensors(lora_tensors(dtype=dtype, seed=9)), "")
        [component] = [Component("n@1", 1.0, digest_of(part.config, part.weights), "mem://x")]
        recipe = make_recipe("cat", [component])
        [parsed] = ordered(recipe, [part])
        files_ = merged_files(recipe, [parsed], DEFAULT_LIMITS)
        merged = parse_adapter(files_.config, files_.weights)
        for before, after in zip(parsed.manifest.modules, merged.manifest.modules, strict=True):
            assert after.scaling == 1.0 and before.scaling == 2.0
            for old, new, factor in ((before.a, after.a, 2.0), (before.b, after.b, 1.0)):
                values = arithmetic.widened(parsed.view(old), dtype) * np.float32(factor)
                assert np.frombuffer(merged.view(new), "<f4").tolist() == values.tolist()


@given(
    weights=st.lists(st.floats(1e-6, 1000) | st.floats(-1000, -1e-6), min_size=3, max_size=3),
    seed=st.integers(0, 2**64 - 1),
    density=st.floats(0, 1, exclude_min=True),
    source=st.text(min_size=1, max_size=80),
)
def test_recipes_are_read_as_they_are_written(
    weights: list[float], seed: int, density: float, source: str
) -> None:
    listed = components(tuple(weights))
    listed[1] = Component("a/b.c-d@12", weights[1], DIGESTS[1], source)
    options: dict[str, Any] = {"density": density, "seed": seed, "majority_sign": "frequency"}
    try:
        recipe = make_recipe("dare_ties", listed, **options)
    except MergeRefusedError:
        assert not source.isprintable() or source[:6].lower() == "merge:"
        return
    assert parse_recipe(recipe.uri) == recipe
    assert recipe.uri.isascii()
    assert make_recipe("dare_ties", listed[::-1], **options) == recipe


@given(st.text(max_size=60), st.sampled_from(["", "?of=", "?density=", "?seed=", "?of=a@1*1*"]))
def test_other_texts_are_refused(text: str, before: str) -> None:
    with pytest.raises(MergeRefusedError):
        parse_recipe(f"merge:ties{before}{text}")


def test_long_recipes_are_refused() -> None:
    listed = components()
    listed[0] = Component("a@1", 1.0, DIGESTS[0], "mem://" + "a" * 17_000)
    with pytest.raises(MergeRefusedError, match="8192"):
        make_recipe("cat", listed)


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
    await eventually(lambda: len(bench.source.fetched) == 4)
    fetches[0].cancel()
    await eventually(lambda: len(bench.source.fetched) == 5)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(bench.source.fetched) == 5
    go_on.set()
    assert len(await asyncio.gather(*fetches[1:])) == 8


def test_merges_wait_for_those_of_the_same_origins_only() -> None:
    one = make_recipe("cat", components((1.0, 2.0)))
    other = make_recipe("linear", components((3.0, 2.0)))
    assert origin_of(one.uri) == origin_of(other.uri) == "mem://h0 mem://h1"
    assert origin_of(make_recipe("cat", components((1.0,))).uri) == "mem://h0"
    assert origin_of("merge:nonsense") == "merge:"


def test_layers_and_ranks_of_each_are_kept() -> None:
    """Modules that some layers lack, or have with another rank, are named one by one."""
    one = AdapterFiles(
        config(r=3, layers_to_transform=[0]), safetensors(lora_tensors(rank=3, layers=[0])), ""
    )
    both = AdapterFiles(config(), safetensors(lora_tensors(seed=8)), "")
    parts = [one, both]
    listed = [
        Component(f"l{n}@1", 1.0, digest_of(part.config, part.weights), "mem://x")
        for n, part in enumerate(parts)
    ]
    recipe = make_recipe("cat", listed)
    files_ = merged_files(recipe, ordered(recipe, parts), DEFAULT_LIMITS)
    merged = parse_adapter(files_.config, files_.weights)
    assert [(m.layer, m.rank, m.scaling) for m in merged.manifest.modules] == [
        (0, 7, 1.0),
        (1, 4, 1.0),
    ]
    assert (
        hashlib.sha256(files_.config).digest()
        == hashlib.sha256(
            merged_files(recipe, ordered(recipe, parts), DEFAULT_LIMITS).config
        ).digest()
    )
