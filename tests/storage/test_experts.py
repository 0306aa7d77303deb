"""LoRA on experts and routers, in the two forms of files: what is read, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from storage.adapter.manifest import AdapterManifest, parse_adapter
from storage.adapter.match import check_base
from storage.base_model import MixtureModule
from storage.errors import (
    AdapterFormatError,
    AdapterMismatchError,
    BadWeightsError,
    MergeRefusedError,
)
from storage.limits import DEFAULT_LIMITS
from storage.merge.combine import merged_files
from storage.merge.recipe import Component, Recipe
from tests.storage.samples import SPEC, config, key, lora_tensors, safetensors, tensor

NUM_EXPERTS, HIDDEN, INTER = 3, 16, 24
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def mixture(*names: str, out: int, num_in: int = HIDDEN, count: int = NUM_EXPERTS) -> dict:
    return {name: MixtureModule(num_in, out, count, (1,)) for name in names}


NEW = {
    **mixture("mlp.experts.gate_up_proj", out=2 * INTER),
    **mixture("mlp.experts.down_proj", num_in=INTER, out=HIDDEN),
    **mixture("mlp.gate", out=NUM_EXPERTS, count=0),
}
QWEN = replace(
    SPEC,
    mixture_modules={
        **NEW,
        **mixture("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj", out=INTER),
        **mixture("mlp.experts.*.down_proj", num_in=INTER, out=HIDDEN),
    },
)
MIXTRAL = replace(
    SPEC,
    mixture_modules={
        **NEW,
        **mixture("block_sparse_moe.gate", out=NUM_EXPERTS, count=0),
        **mixture(*(f"block_sparse_moe.experts.*.{name}" for name in ("w1", "w3")), out=INTER),
        **mixture("block_sparse_moe.experts.*.w2", num_in=INTER, out=HIDDEN),
    },
)


def pair(module: str, num_in: int, num_out: int, ranks: int = 4, layer: int = 1) -> dict[str, Any]:
    return {
        key(layer, module, "A"): tensor((ranks, num_in), seed=len(module)),
        key(layer, module, "B"): tensor((num_out, ranks), seed=ranks),
    }


def whole(rank_up: int = 4, rank_down: int = 4, count: int = NUM_EXPERTS) -> dict[str, Any]:
    """As nested wrappers are saved."""
    return {
        **pair("mlp.experts.base_layer", HIDDEN, 2 * INTER, count * rank_up),
        **pair("mlp.experts", INTER, HIDDEN, count * rank_down),
    }


def apart(names: tuple[str, ...], block: str = "mlp", experts: Any = None) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for expert in range(NUM_EXPERTS) if experts is None else experts:
        for name in names:
            is_down = name in ("w2", "down_proj")
            sizes = (INTER, HIDDEN) if is_down else (HIDDEN, INTER)
            made |= pair(f"{block}.experts.{expert}.{name}", *sizes)
    return made


def manifest_of(tensors: dict[str, Any], **fields: Any) -> AdapterManifest:
    return parse_adapter(config(**fields), safetensors(tensors)).manifest


def described(manifest: AdapterManifest) -> dict[str, tuple[int, float, int]]:
    return {
        each.module: (each.rank, each.scaling, each.num_experts)
        for each in manifest.modules
        if each.layer == 1
    }


def test_wrappers_are_named_by_their_parameters() -> None:
    manifest = manifest_of(
        {**whole(rank_down=2), **pair("mlp.gate", HIDDEN, NUM_EXPERTS, 5)},
        target_modules=[],
        target_parameters=[*BOTH, "gate.weight"],
        rank_pattern={"experts.down_proj": 2, r"gate\.weight": 5},
        alpha_pattern={"mlp.gate.weight": 10},
    )
    assert described(manifest) == {
        "mlp.experts.gate_up_proj": (4, 2.0, 3),
        "mlp.experts.down_proj": (2, 4.0, 3),
        "mlp.gate": (5, 2.0, 0),
    }
    for spec in (QWEN, MIXTRAL):
        check_base(manifest, spec)


@pytest.mark.parametrize("at", [0, 1])
def test_a_wrapper_alone_is_the_parameter_that_was_selected(at: int) -> None:
    sizes = ((HIDDEN, 2 * INTER), (INTER, HIDDEN))[at]
    tensors = pair("mlp.experts", *sizes, 12)
    # Neither has a part in the choice of parameters.
    fields = {"target_modules": ["q_proj"], "layers_to_transform": [0], "exclude_modules": ["mlp"]}
    for name in (BOTH[at], BOTH[at].rpartition(".")[2], f"model.layers.1.{BOTH[at]}"):
        tensors |= lora_tensors(layers=[0])
        manifest = manifest_of(tensors, target_parameters=[name], **fields)
        assert described(manifest) == {BOTH[at]: (4, 2.0, 3)}
        check_base(manifest, QWEN)


def test_files_of_transformers_4() -> None:
    for spec, block, names, router in (
        (QWEN, "mlp", ("gate_proj", "up_proj", "down_proj"), "mlp.gate"),
        (MIXTRAL, "block_sparse_moe", ("w1", "w2", "w3"), "block_sparse_moe.gate"),
    ):
        tensors = apart(names, block) | pair(router, HIDDEN, NUM_EXPERTS)
        manifest = manifest_of(tensors, target_modules=[*names, "gate"], rank_pattern={})
        check_base(manifest, replace(spec, layer_modules={"self_attn.q_proj": (HIDDEN, HIDDEN)}))
        assert manifest.is_old_form and manifest.has_mixtures
        assert {each.name for each in manifest.modules} == {
            router,
            *(f"{block}.experts.*.{name}" for name in names),
        }
        everything = {**lora_tensors(tuple(SPEC.layer_modules)), **tensors}
        check_base(manifest_of(everything, target_modules="all-linear"), spec)
    some = apart(("up_proj",), experts=[2])
    check_base(manifest_of(some, target_modules=["experts.2.up_proj"]), QWEN)


@pytest.mark.parametrize(
    ("tensors", "fields", "said"),
    [
        (pair("mlp.experts", INTER, HIDDEN, 12), {"target_parameters": ["q"]}, "selects neither"),
        (pair("mlp.experts", INTER, HIDDEN, 12), {}, "selects neither"),
        (
            pair("mlp.experts.base_layer", HIDDEN, 2 * INTER, 12),
            {"target_parameters": BOTH},
            "around it has none",
        ),
        (
            pair("mlp.experts.down_proj", INTER, HIDDEN, 12),
            {"target_parameters": BOTH},
            "names by its module",
        ),
        (
            pair("mlp.experts", INTER, HIDDEN, 10),
            {"target_parameters": BOTH[1:]},
            "rank 4 for each expert",
        ),
        (apart(("up_proj",)), {"target_parameters": BOTH}, "of transformers 5"),
        (pair("mlp.experts.base_layer.base_layer", 16, 16, 12), {}, "UNKNOWN"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tensors: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    if said == "UNKNOWN":  # no module of any base model
        with pytest.raises((AdapterMismatchError, BadWeightsError)):
            check_base(manifest_of(tensors, r=12, **fields), QWEN)
        return
    with pytest.raises(BadWeightsError, match=said):
        manifest_of(tensors, **fields)


@pytest.mark.parametrize("field", ["use_dora", "lora_bias"])
@pytest.mark.parametrize("tensors", [apart(("up_proj",)), pair("mlp.gate", HIDDEN, NUM_EXPERTS)])
def test_dora_and_biases_on_mixtures_are_refused_by_name(
    field: str, tensors: dict[str, Any]
) -> None:
    with pytest.raises(AdapterFormatError, match=f"{field} cannot be served") as caught:
        manifest_of(tensors, **{field: True})
    assert caught.value.reason == "UNSUPPORTED_FEATURE" and caught.value.metadata["field"] == field


@pytest.mark.parametrize(
    ("tensors", "fields", "reason", "named"),
    [
        (whole(count=4), {"target_parameters": BOTH}, "SHAPE_MISMATCH", "down_proj"),
        (whole(), {"target_parameters": BOTH[:1]}, "UNSELECTED_MODULES", "down_proj"),
        (
            pair("mlp.experts", INTER, HIDDEN, 12),
            {"target_parameters": BOTH},
            "MISSING_MODULES",
            "gate_up_proj",
        ),
        (
            pair("mlp.experts", INTER, HIDDEN, 12, layer=0),
            {"target_parameters": BOTH[1:]},
            "UNKNOWN_MODULE",
            "layers.0.mlp.experts.down_proj",
        ),
        (
            apart(("up_proj",), experts=[3]),
            {"target_modules": ["experts.3.up_proj"]},
            "SHAPE_MISMATCH",
            "experts.3.up_proj",
        ),
        (
            apart(("w1",), "block_sparse_moe"),
            {"target_modules": ["w1"]},
            "UNKNOWN_MODULE",
            "block_sparse_moe.experts.0.w1",
        ),
        (
            apart(("down_proj",), experts=[0, 2]) | lora_tensors(["mlp.down_proj"]),
            {"target_modules": ["down_proj"]},
            "MISSING_MODULES",
            "experts.1.down_proj",
        ),
        (
            whole(),
            {"target_parameters": [*BOTH, "gate.weight"]},
            "MISSING_MODULES",
            "mlp.gate",
        ),
    ],
)
def test_adapters_that_do_not_fit_the_model(
    tensors: dict[str, Any], fields: dict[str, Any], reason: str, named: str
) -> None:
    fields = {"target_modules": [], **fields}
    with pytest.raises(AdapterMismatchError) as caught:
        check_base(manifest_of(tensors, **fields), QWEN)
    assert caught.value.reason == reason and caught.value.metadata["module"].endswith(named)


def test_a_model_without_mixtures_has_no_place_for_them() -> None:
    manifest = manifest_of(whole(), target_modules=[], target_parameters=BOTH)
    with pytest.raises(AdapterMismatchError, match="has no mixture"):
        check_base(manifest, SPEC)


def test_parameters_count_in_the_digest() -> None:
    """They decide whether a file is complete."""
    digests = {
        manifest_of(whole(), target_modules=[], target_parameters=names).digest
        for names in (BOTH, ["gate_up_proj", "down_proj"], BOTH[::-1])
    }
    assert len(digests) == 2


def test_merges_of_them_are_refused_by_component() -> None:
    tensors = lora_tensors() | pair("mlp.gate", HIDDEN, NUM_EXPERTS)
    parsed = parse_adapter(config(target_modules=["q_proj", "gate"]), safetensors(tensors))
    component = Component("voice@1", 1.0, parsed.manifest.digest, "mem://voice")
    recipe = Recipe("cat", (component,), None, "", None)
    with pytest.raises(MergeRefusedError, match="mixture of experts") as caught:
        merged_files(recipe, [parsed], DEFAULT_LIMITS)
    assert caught.value.metadata["component"] == "voice@1"
