from dataclasses import replace
from typing import Any

import pytest

from storage.adapter.manifest import AdapterManifest, parse_adapter
from storage.adapter.match import check_base
from storage.errors import AdapterMismatchError, BadConfigError, UnsupportedFeatureError
from tests.storage.samples import (
    SPEC,
    Tensor,
    config,
    head_tensors,
    key,
    lora_tensors,
    safetensors,
    tensor,
)

ALL = tuple(SPEC.layer_modules)


def manifest_of(tensors: dict[str, Tensor] | None = None, **fields: Any) -> AdapterManifest:
    return parse_adapter(config(**fields), safetensors(tensors or lora_tensors())).manifest


PARTLY = replace(
    SPEC,
    layer_modules={**SPEC.layer_modules, "mlp.shared_expert.gate_proj": (16, 40)},
    module_layers={"mlp.gate_proj": (0,), "mlp.shared_expert.gate_proj": (1,)},
)


def test_modules_that_some_layers_have() -> None:
    both = {
        **lora_tensors(["mlp.gate_proj"], layers=[0]),
        key(1, "mlp.shared_expert.gate_proj", "A"): tensor((4, 16)),
        key(1, "mlp.shared_expert.gate_proj", "B"): tensor((40, 4)),
    }
    check_base(manifest_of(both, target_modules=["gate_proj"]), PARTLY)
    check_base(manifest_of(lora_tensors(), target_modules=["q_proj"]), PARTLY)
    only_dense = lora_tensors(["mlp.gate_proj"], layers=[0])
    for tensors, reason, named in (
        (lora_tensors(["mlp.gate_proj"]), "UNKNOWN_MODULE", "layers.1.mlp.gate_proj"),
        (only_dense, "MISSING_MODULES", "layers.1.mlp.shared_expert.gate_proj"),
    ):
        with pytest.raises(AdapterMismatchError) as caught:
            check_base(manifest_of(tensors, target_modules=["gate_proj"]), PARTLY)
        assert caught.value.reason == reason and named in caught.value.metadata["module"]


def test_lora_on_the_shared_experts_gate_is_refused_by_name() -> None:
    name = "base_model.model.model.layers.0.mlp.shared_expert_gate.lora_A.weight"
    with pytest.raises(UnsupportedFeatureError, match="leave it out") as caught:
        manifest_of({**lora_tensors(), name: tensor((4, 16))})
    assert caught.value.metadata["tensor"] == name


def refusal(manifest: AdapterManifest, **options: Any) -> AdapterMismatchError:
    with pytest.raises(AdapterMismatchError) as caught:
        check_base(manifest, SPEC, **options)
    return caught.value


@pytest.mark.parametrize(
    ("tensors", "fields"),
    [
        (lora_tensors(), {}),
        (lora_tensors(), {"target_modules": ".*q_proj"}),
        (lora_tensors(), {"target_modules": r"model\.layers\.\d+\.self_attn\.q_proj"}),
        (lora_tensors(), {"target_modules": r"^(?!.*mlp).*(?:q_proj)$"}),
        (
            lora_tensors(),
            {"target_modules": [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]},
        ),
        (lora_tensors(ALL), {"target_modules": "all-linear"}),
        (lora_tensors(ALL), {"target_modules": "ALL-LINEAR"}),
        (lora_tensors(ALL[1:]), {"target_modules": "all-linear", "exclude_modules": ["q_proj"]}),
        (lora_tensors(ALL[4:]), {"target_modules": "all-linear", "exclude_modules": ".*attn.*"}),
        (lora_tensors(layers=[1]), {"layers_to_transform": 1}),
        (lora_tensors(layers=[1]), {"layers_to_transform": [1, 7]}),
        (lora_tensors(layers=[0, 1]), {"layers_to_transform": []}),
        (lora_tensors(layers=[0]), {"layers_to_transform": [0], "layers_pattern": ["h", "layers"]}),
        (
            # PEFT looks at layers_to_transform for suffixes only, not for full names.
            lora_tensors(layers=[1]),
            {"target_modules": ["model.layers.1.self_attn.q_proj"], "layers_to_transform": [0]},
        ),
        (
            {**lora_tensors(), **head_tensors()},
            {"target_modules": ["q_proj", "lm_head"]},
        ),
    ],
)
def test_complete_adapters_pass(tensors: dict[str, Tensor], fields: dict[str, Any]) -> None:
    check_base(manifest_of(tensors, **fields), SPEC)


@pytest.mark.parametrize(
    "name", ["org/tiny", "ORG/Tiny", "tiny", "/somewhere/else/tiny/", "other\\tiny", "", None]
)
def test_base_name_matches_by_its_last_part(name: str | None) -> None:
    check_base(manifest_of(base_model_name_or_path=name), SPEC)


@pytest.mark.parametrize("name", ["org/tiny-chat", "tiny/other", "org"])
def test_other_base_is_refused_unless_named_explicitly(name: str) -> None:
    manifest = manifest_of(base_model_name_or_path=name)
    error = refusal(manifest)
    assert error.reason == "BASE_MODEL_MISMATCH"
    assert error.metadata == {"trained_on": name, "base_model": "org/tiny"}
    check_base(manifest, SPEC, explicit_base=True)


@pytest.mark.parametrize(
    ("tensors", "fields", "reason", "module"),
    [
        (
            lora_tensors(layers=[0, 1])
            | {
                key(2, "self_attn.q_proj", "A"): tensor([4, 16]),
                key(2, "self_attn.q_proj", "B"): tensor([16, 4]),
            },
            {},
            "UNKNOWN_MODULE",
            "model.layers.2.self_attn.q_proj",
        ),
        (
            {
                key(0, "self_attn.qkv_proj", "A"): tensor([4, 16]),
                key(0, "self_attn.qkv_proj", "B"): tensor([16, 4]),
            },
            {"target_modules": ["qkv_proj"]},
            "UNKNOWN_MODULE",
            "model.layers.0.self_attn.qkv_proj",
        ),
        (
            lora_tensors() | {key(0, "self_attn.q_proj", "A"): tensor([4, 17])},
            {},
            "SHAPE_MISMATCH",
            "model.layers.0.self_attn.q_proj",
        ),
        (
            lora_tensors() | {key(1, "self_attn.q_proj", "B"): tensor([15, 4])},
            {},
            "SHAPE_MISMATCH",
            "model.layers.1.self_attn.q_proj",
        ),
        (
            lora_tensors()
            | head_tensors()
            | {"base_model.model.lm_head.base_layer.weight": tensor([33, 16])},
            {"target_modules": ["q_proj", "lm_head"]},
            "SHAPE_MISMATCH",
            "lm_head.weight",
        ),
        (
            lora_tensors(layers=[0]),
            {},
            "MISSING_MODULES",
            "model.layers.1.self_attn.q_proj",
        ),
        (
            lora_tensors(),
            {"target_modules": ["q_proj", "v_proj"]},
            "MISSING_MODULES",
            "model.layers.0.self_attn.v_proj",
        ),
        (
            lora_tensors(),
            {"target_modules": ["q_proj", "lm_head"]},
            "MISSING_MODULES",
            "lm_head",
        ),
        (
            lora_tensors(ALL[1:]),
            {"target_modules": "all-linear"},
            "MISSING_MODULES",
            "model.layers.0.self_attn.q_proj",
        ),
        (
            lora_tensors(),
            {"target_modules": ["v_proj", "q_proj"], "exclude_modules": ["q_proj", "v_proj"]},
            "UNSELECTED_MODULES",
            "model.layers.0.self_attn.q_proj",
        ),
        (
            lora_tensors(),
            {"layers_to_transform": [0]},
            "UNSELECTED_MODULES",
            "model.layers.1.self_attn.q_proj",
        ),
        (
            lora_tensors(ALL) | head_tensors(),
            {"target_modules": "all-linear"},
            "UNSELECTED_MODULES",
            "lm_head",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tensors: dict[str, Tensor], fields: dict[str, Any], reason: str, module: str
) -> None:
    for explicit in (False, True):
        error = refusal(manifest_of(tensors, **fields), explicit_base=explicit)
        assert (error.reason, error.metadata["module"]) == (reason, module)


def test_many_missing_modules_are_counted_not_all_listed() -> None:
    error = refusal(manifest_of(lora_tensors(ALL[:1]), target_modules="all-linear"))
    assert error.metadata["count"] == "12"
    assert len(error.message) < 500


def test_layers_pattern_must_be_a_name() -> None:
    with pytest.raises(BadConfigError, match="layers_pattern"):
        manifest_of(layers_to_transform=[0], layers_pattern="(a+)+")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("layers.0.self_attn.k_proj.bias", [8], None),
        ("layers.0.self_attn.k_proj.bias", [16], "SHAPE_MISMATCH"),
        ("layers.2.self_attn.k_proj.bias", [8], "UNKNOWN_MODULE"),
        ("layers.0.self_attn.sink.bias", [16], "UNKNOWN_MODULE"),
    ],
)
def test_trained_biases_must_fit(name: str, shape: list[int], reason: str | None) -> None:
    tensors = {**lora_tensors(), f"base_model.model.model.{name}": tensor(shape)}
    manifest = parse_adapter(config(bias="all"), safetensors(tensors)).manifest
    if reason is None:
        check_base(manifest, SPEC)
        return
    with pytest.raises(AdapterMismatchError) as caught:
        check_base(manifest, SPEC)
    assert caught.value.reason == reason
