"""What makes the bits of a merge the same everywhere, and recipes as text."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.adapter.manifest import digest_of, parse_adapter
from storage.errors import (
    MergeRefusedError,
)
from storage.files import AdapterFiles
from storage.limits import DEFAULT_LIMITS
from storage.merge import arithmetic
from storage.merge.combine import merged_files
from storage.merge.recipe import Component, make_recipe, parse_recipe
from tests.storage.merge_samples import (
    DIGESTS,
    PARTS,
    components,
    digest,
    ordered,
)
from tests.storage.samples import config, lora_tensors, safetensors

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
