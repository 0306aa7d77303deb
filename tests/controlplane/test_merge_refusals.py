"""Merges that the registry refuses: by field, by component, and recipes from strangers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chorale.errors import NotFoundError
from chorale.source_token import KEY
from chorale.v1 import adapter_registry_pb2 as pb
from storage.merge.recipe import parse_recipe
from storage.sources import SourceRouter
from tests.controlplane.merging import get, merge, voices
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import ControlPlane, failure

__all__ = ["voices"]


BAD: list[tuple[dict[str, float], dict[str, Any], str]] = [
    ({}, {}, "components"),
    ({f"x{number}": 1.0 for number in range(65)}, {}, "components"),
    ({"a": math.nan}, {}, "components[0].weight"),
    ({"a": math.inf}, {}, "components[0].weight"),
    ({"a": 0.0}, {}, "components[0].weight"),
    ({"a": 1e4}, {}, "components[0].weight"),
    ({"a": 1.0, "b": -1e-9}, {}, "components[1].weight"),
    ({"a": 1.0, "a@1": 1.0}, {}, "components[1]"),
    ({"a": 1.0, "mixed": 1.0}, {}, "components"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 2}, "components"),  # other ranks
    ({"a": 1.0}, {"strategy": 3, "density": 0.5}, "components"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 99}, "strategy"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 3}, "density"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 3, "density": 0.0}, "density"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 3, "density": math.nan}, "density"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 3, "density": 1.01}, "density"),
    ({"a": 1.0, "c": 1.0}, {"strategy": 3, "density": 0.01}, "density"),  # would leave nothing
    ({"a": 1.0, "c": 1.0}, {"strategy": 5, "density": 1e-300}, "density"),
    ({"a": 1.0, "b": 1.0}, {"density": 0.5}, "density"),
    ({"a": 1.0, "b": 1.0}, {"seed": 0}, "seed"),
    ({"a": 1.0, "b": 1.0}, {"majority_sign": 1}, "majority_sign"),
    ({"a": 1.0, "b": 1.0}, {"majority_sign": 9}, "majority_sign"),
]


async def test_bad_merges_are_refused_by_field(voices: ControlPlane, tmp_path: Path) -> None:
    await voices.register("c", make_adapter_dir(tmp_path / "c", seed=8))
    await merge(voices, "mixed", {"a": 0.5})
    for weights, fields, field in BAD:
        error = await failure(merge(voices, "bad", weights, **fields))
        assert (error.reason, error.metadata.get("field")) == ("MERGE_REFUSED", field), error
        assert len(error.message) < 400
    assert isinstance(await failure(get(voices, "bad")), NotFoundError)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"nobody": 1.0}, "ADAPTER_NOT_FOUND"),
        ({"a@9": 1.0}, "ADAPTER_NOT_FOUND"),
        ({"shared": 1.0}, "ALIAS_AMBIGUOUS"),
        ({"é": 1.0}, "NAME_INVALID"),
        ({"": 1.0}, "NAME_INVALID"),
    ],
)
async def test_components_that_are_no_one_version(
    voices: ControlPlane, weights: dict[str, float], reason: str
) -> None:
    targets = [pb.AliasTarget(adapter=name, weight=1) for name in ("a", "b")]
    alias = pb.Alias(name="shared", targets=targets)
    await voices.registry.SetAlias(pb.SetAliasRequest(alias=alias))
    assert (await failure(merge(voices, "bad", weights))).reason == reason


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"ensure_weight_tying": True},
    ],
    ids=lambda config: next(iter(config)),
)
async def test_what_is_more_than_plain_lora_is_refused_by_component(
    voices: ControlPlane, tmp_path: Path, config: dict[str, Any]
) -> None:
    made = make_adapter_dir(tmp_path / "odd", seed=4, config=config)
    add_tensors(made, config)
    await voices.register("odd", made)
    error = await failure(merge(voices, "bad", {"a": 1.0, "odd": 1.0}))
    assert (error.reason, error.metadata["component"]) == ("MERGE_REFUSED", "odd@1")
    assert next(iter(config)) in error.message


def add_tensors(directory: Path, config: dict[str, Any]) -> None:
    """Those that such a configuration asks for."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, value in list(tensors.items()):
        if not name.endswith("lora_B.weight"):
            continue
        ones = np.ones(value.shape[0], np.float32)
        if "use_dora" in config:
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = ones
        if "lora_bias" in config:
            tensors[name.replace("weight", "bias")] = ones
        if "bias" in config:
            tensors[name.replace("lora_B.weight", "base_layer.bias")] = ones
    if "modules_to_save" in config:
        tensors["base_model.model.lm_head.weight"] = np.ones((64, 16), np.float32)
    save_file(tensors, path, metadata={"format": "pt"})


async def test_ranks_beyond_the_kernels_are_refused(voices: ControlPlane, tmp_path: Path) -> None:
    for name, rank in (("wide", 252), ("wider", 253)):
        await voices.register(name, make_adapter_dir(tmp_path / name, rank=rank, seed=rank))
    assert (await merge(voices, "most", {"a": 1.0, "wide": 1.0})).version.rank == 256
    error = await failure(merge(voices, "bad", {"a": 1.0, "wider": 1.0}))
    assert error.reason == "MERGE_REFUSED" and "257" in error.message and "256" in error.message


async def test_sums_beyond_float32_are_refused(voices: ControlPlane, tmp_path: Path) -> None:
    big = make_adapter_dir(tmp_path / "big", seed=5, lora_alpha=10**6)
    path = big / "adapter_model.safetensors"
    tensors = {name: value * np.float32(1e32) for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    await voices.register("big", big)
    error = await failure(merge(voices, "bad", {"a": 1.0, "big": 1000.0}))
    assert (error.reason, error.metadata["field"]) == ("MERGE_REFUSED", "weight")


async def test_other_base_models_are_refused(voices: ControlPlane, tmp_path: Path) -> None:
    other = replace(TINY_BASE, name="tiny/other")
    await voices.join("dp-1", base=other)
    await voices.register("o", make_adapter_dir(tmp_path / "o", base=other, seed=6))
    error = await failure(merge(voices, "bad", {"a": 1.0, "o": 1.0}))
    assert (error.reason, error.metadata["component"]) == ("MERGE_BASE_MIXED", "o@1")
    source = (await merge(voices, "mix", {"a": 1.0})).version.source
    error = await failure(voices.register("bad", source, base_model="tiny/other"))
    assert error.reason == "MERGE_COMPONENT_UNKNOWN"


async def test_a_source_that_changed_is_refused_by_component(
    voices: ControlPlane, tmp_path: Path
) -> None:
    make_adapter_dir(tmp_path / "a", seed=77)
    error = await failure(merge(voices, "bad", {"a": 1.0, "b": 1.0}))
    assert (error.reason, error.metadata["component"]) == ("DIGEST_MISMATCH", "a@1")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    error = await failure(merge(voices, "bad", {"a": 1.0, "b": 1.0}))
    assert (error.reason, error.metadata["component"]) == ("SOURCE_NOT_FOUND", "a@1")


async def test_a_token_means_nothing_to_a_merge(voices: ControlPlane) -> None:
    request = pb.MergeAdaptersRequest(
        name="mix", components=[pb.MergeComponent(adapter="a", weight=1.0)]
    )
    call = voices.registry.MergeAdapters(request, metadata=((KEY, "secret"),))
    assert (await failure(call)).reason == "TOKEN_UNSUPPORTED"


STRANGE = [
    "merge:",
    "merge:cat",
    "merge:cat?of=a@1",
    "merge:cat?of=a@1*1.0*zz*/x",
    "merge:cat?of=a@1*nan*{digest}*/x",
    "merge:cat?of=a@1*1.0*{digest}*merge:cat",
    "merge:cat?of=a@1*1.0*{digest}*",
    "merge:cat?of=a@1*1.0*{digest}*/x%00",
    "merge:svd?of=a@1*1.0*{digest}*/x",
    "merge:cat?density=0.5&of=a@1*1.0*{digest}*/x",
    "merge:ties?density=0.5&density=0.5&of=a@1*1.0*{digest}*/x",
    "merge:cat?what=1&of=a@1*1.0*{digest}*/x",
    "merge:dare_linear?density=1e-&seed=-1&of=a@1*1.0*{digest}*/x",
    "merge:cat?" + "&" * 5_000,
]


async def test_recipes_from_strangers(voices: ControlPlane) -> None:
    for source in STRANGE:
        error = await failure(voices.register("bad", source.format(digest="0" * 64)))
        assert error.reason == "MERGE_REFUSED", (source, error)
        assert len(error.message) < 500


async def test_a_recipe_reads_no_more_than_the_operator_opened(voices: ControlPlane) -> None:
    source = (await merge(voices, "mix", {"a": 1.0})).version.source
    recipe = parse_recipe(source)
    outside = source.replace(recipe.components[0].source, "/etc")
    assert (await failure(voices.register("bad", outside))).reason == "SOURCE_OUTSIDE_ROOTS"
    too_long = source + "a" * 17_000
    assert (await failure(voices.register("bad", too_long))).reason == "SOURCE_INVALID"


async def test_a_recipe_of_what_is_not_registered_is_refused_before_anything_is_read(
    voices: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await merge(voices, "mix", {"a": 0.5, "b": 2.0})).version
    read: list[str] = []

    async def fetch(_: SourceRouter, uri: str, *args: Any) -> None:
        read.append(uri)
        raise AssertionError

    monkeypatch.setattr(SourceRouter, "fetch", fetch)
    (first, second) = made.merge.components
    for forged in (
        made.source.replace(first.adapter, "other@1"),
        made.source.replace(first.adapter, f"{first.adapter}0"),
        made.source.replace(second.digest, "f" * 64),
    ):
        error = await failure(voices.register("forged", forged, base_model=TINY_BASE.name))
        assert error.reason == "MERGE_COMPONENT_UNKNOWN"
    assert not read
