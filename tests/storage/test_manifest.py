import json
import math
import mmap
from pathlib import Path
from typing import Any

import pytest

from storage.adapter.manifest import frozen_base_name, parse_adapter
from storage.errors import (
    AdapterFormatError,
    BadConfigError,
    BadWeightsError,
    NonFiniteError,
    UnsupportedFeatureError,
)
from tests.storage.samples import config, head_tensors, key, lora_tensors, safetensors, tensor


def test_modules_are_listed_by_layer_with_their_tensors() -> None:
    tensors = lora_tensors(["self_attn.q_proj", "mlp.down_proj"], rank=4)
    weights = safetensors(tensors)
    parsed = parse_adapter(config(target_modules=["q_proj", "down_proj"]), weights)
    manifest = parsed.manifest
    assert [(m.layer, m.module) for m in manifest.modules] == [
        (0, "mlp.down_proj"),
        (0, "self_attn.q_proj"),
        (1, "mlp.down_proj"),
        (1, "self_attn.q_proj"),
    ]
    for module in manifest.modules:
        assert module.layer is not None
        assert module.scaling == 2.0
        for matrix, ref in (("A", module.a), ("B", module.b)):
            _, shape, raw = tensors[key(module.layer, module.module, matrix)]
            assert list(ref.shape) == shape
            assert bytes(parsed.view(ref)) == raw
    assert manifest.max_rank == 4
    assert manifest.dtype == "F32"
    assert manifest.num_parameters == 2 * (4 * 16 + 16 * 4 + 4 * 24 + 16 * 4)
    assert manifest.size_bytes == 4 * manifest.num_parameters
    assert manifest.layers_root == "model."


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 3}}, 0.75),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 3}}, 2.0),
        ({"alpha_pattern": {"x": 1, r".*\.0\..*": 6, "q_proj": 3}}, 1.5),
        ({"alpha_pattern": {"proj": 3}}, 2.0),
        ({"r": 16, "rank_pattern": {"q_proj": 4}}, 2.0),
        ({"r": 16, "rank_pattern": {"q_proj": 4}, "use_rslora": True}, 4.0),
        ({"lora_alpha": -2}, -0.5),
    ],
)
def test_scaling_of_layer_0(fields: dict[str, Any], expected: float) -> None:
    manifest = parse_adapter(config(**fields), safetensors(lora_tensors())).manifest
    assert manifest.modules[0].scaling == expected


def test_lm_head_comes_last_and_frozen_copies_are_listed() -> None:
    copies = {
        "base_model.model.lm_head.base_layer.weight": tensor([32, 16]),
        "base_model.model.model.embed_tokens.weight": tensor([32, 16]),
    }
    weights = safetensors({**copies, **head_tensors(), **lora_tensors()})
    manifest = parse_adapter(config(target_modules=["lm_head", "q_proj"]), weights).manifest
    assert [m.layer for m in manifest.modules] == [0, 1, None]
    assert manifest.modules[-1].module == "lm_head"
    assert [frozen_base_name(ref) for ref in manifest.frozen_copies] == [
        "embed_tokens.weight",
        "lm_head.weight",
    ]
    assert manifest.size_bytes == 4 * manifest.num_parameters


def test_default_infix_and_headless_models_are_understood() -> None:
    tensors = {
        name.replace(".weight", ".default.weight").replace(".model.model.", ".model."): value
        for name, value in lora_tensors().items()
    }
    manifest = parse_adapter(config(), safetensors(tensors)).manifest
    assert manifest.layers_root == ""
    assert manifest.full_name(manifest.modules[0]) == "layers.0.self_attn.q_proj"


def test_mixed_dtypes_are_said_so() -> None:
    tensors = {**lora_tensors(layers=[0]), **lora_tensors(layers=[1], dtype="BF16")}
    assert parse_adapter(config(), safetensors(tensors)).manifest.dtype == "MIXED"


def test_weights_may_be_a_memory_map(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(safetensors(lora_tensors()))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    manifest = parse_adapter(config(), mapped).manifest
    assert manifest == parse_adapter(config(), path.read_bytes()).manifest


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (f"{Q}.lora_embedding_A", UnsupportedFeatureError),
        ("base_model.model.model.embed_tokens.lora_magnitude_vector", UnsupportedFeatureError),
        ("base_model.model.model.embed_tokens.lora_B.bias", UnsupportedFeatureError),
        ("base_model.model.model.embed_tokens.modules_to_save.weight", UnsupportedFeatureError),
        ("base_model.model.lm_head.token_adapter.base_layer.weight", UnsupportedFeatureError),
        ("base_model.model.model.norm.weight", UnsupportedFeatureError),
        ("base_model.model.model.layers.0.input_layernorm.weight", UnsupportedFeatureError),
        ("base_model.model.model.embed_tokens.lora_embedding_C", BadWeightsError),
        ("base_model.model.lm_head.token_adapter.trainable_tokens_original", BadWeightsError),
        ("base_model.model.lm_head.modules_to_save.weight", UnsupportedFeatureError),
        (f"{Q}.modules_to_save.bias", UnsupportedFeatureError),
        (f"{Q}.original_module.bias", UnsupportedFeatureError),
        (f"{Q}.lora_A.bias", BadWeightsError),
        (f"{Q}.lora_B.base_layer.bias", BadWeightsError),
        (f"{Q}.lora_magnitude_vector.bias", BadWeightsError),
        ("base_model.model.model.norm.bias", UnsupportedFeatureError),
        ("base_model.model.model.layers.0.input_layernorm.bias", UnsupportedFeatureError),
        ("base_model.model.score.weight", BadWeightsError),
        (f"{Q}.base_layer.weight", BadWeightsError),
        (f"{Q}.lora_C.weight", BadWeightsError),
        (f"{Q}.lora_A.other.weight", BadWeightsError),
        (f"{Q}.lora_A.weight\n", BadWeightsError),
        (f"{Q}.lora_diag", BadWeightsError),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", BadWeightsError),
        ("base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight", BadWeightsError),
        ("base_model.model.model.layers.0..lora_A.weight", BadWeightsError),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", BadWeightsError),
        ("base_model.model.vision.layers.0.self_attn.q_proj.lora_A.weight", BadWeightsError),
        ("x" * 400, BadWeightsError),
    ],
)
def test_every_key_is_understood_or_refused(name: str, error: type[AdapterFormatError]) -> None:
    weights = safetensors({**lora_tensors(), name: tensor([4, 16])})
    with pytest.raises(error) as caught:
        parse_adapter(config(), weights)
    assert type(caught.value) is error
    assert name[:100] in caught.value.message.replace("\\n", "\n")
    assert len(caught.value.message) < 500


def without(name: str) -> bytes:
    tensors = lora_tensors()
    del tensors[name]
    return safetensors(tensors)


def with_tensor(name: str, shape: list[int]) -> bytes:
    return safetensors({**lora_tensors(), name: tensor(shape)})


A0, B0 = key(0, "self_attn.q_proj", "A"), key(0, "self_attn.q_proj", "B")


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (safetensors({}), "no lora_A"),
        (safetensors({"base_model.model.lm_head.weight": tensor([32, 16])}), "no lora_A"),
        (without(A0), "no lora_A"),
        (without(B0), "no lora_B"),
        (with_tensor(A0, [5, 16]), "rank 4"),
        (with_tensor(B0, [16, 5]), "rank 4"),
        (with_tensor(A0, [64]), "matrix"),
        (with_tensor(A0, [4, 16, 1]), "matrix"),
        (with_tensor(A0, [4, 0]), "matrix"),
        (with_tensor(A0.replace(".weight", ".default.weight"), [4, 16]), "twice"),
        (
            with_tensor(A0.replace("model.layers.0.self_attn.q", "layers.0.self_attn.k"), [4, 16]),
            "mix",
        ),
        (
            safetensors(
                {
                    **lora_tensors(),
                    "base_model.model.lm_head.weight": tensor([32, 16]),
                    "base_model.model.lm_head.base_layer.weight": tensor([32, 16]),
                }
            ),
            "repeats lm_head.weight",
        ),
    ],
)
def test_incomplete_or_contradictory_weights_are_refused(weights: bytes, text: str) -> None:
    with pytest.raises(BadWeightsError, match=text):
        parse_adapter(config(), weights)


def test_rank_pattern_must_agree_with_the_tensors() -> None:
    weights = safetensors(lora_tensors())
    with pytest.raises(BadWeightsError, match=r"layers.1.self_attn.q_proj.*rank 2"):
        parse_adapter(config(rank_pattern={"layers.1.self_attn.q_proj": 2}), weights)


Q1 = Q.replace("layers.0", "layers.1")
K = Q.replace("q_proj", "k_proj")


def with_vectors(**names: list[int]) -> bytes:
    """q_proj's LoRA, and tensors of the given shapes; `Q__x` is x of layer 0's q_proj."""
    places = {"Q": Q, "Q1": Q1, "K": K}
    extra = {}
    for index, (name, shape) in enumerate(names.items()):
        place, part = name.split("__")
        extra[f"{places[place]}.{part.replace('_DOT_', '.')}"] = tensor(shape, seed=500 + index)
    return safetensors({**lora_tensors(), **extra})


@pytest.mark.parametrize("suffix", ["", "_DOT_default", "_DOT_default_DOT_weight"])
def test_dora_magnitudes_belong_to_their_modules(suffix: str) -> None:
    name = f"lora_magnitude_vector{suffix}"
    weights = with_vectors(**{f"Q__{name}": [16], f"Q1__{name}": [16]})
    parsed = parse_adapter(config(use_dora=True), weights)
    manifest = parsed.manifest
    for index, module in enumerate(manifest.modules):
        assert module.magnitude is not None
        assert module.lora_bias is None
        assert bytes(parsed.view(module.magnitude)) == tensor([16], seed=500 + index)[2]
        assert module.refs == (module.a, module.b, module.magnitude)
    assert manifest.num_parameters == 2 * (4 * 16 + 16 * 4 + 16)


def test_biases_of_lora_and_of_the_base() -> None:
    weights = with_vectors(
        Q__lora_B_DOT_bias=[16], Q1__lora_B_DOT_bias=[16], Q__base_layer_DOT_bias=[16], K__bias=[8]
    )
    manifest = parse_adapter(config(lora_bias=True, bias="all"), weights).manifest
    assert [m.lora_bias.shape for m in manifest.modules if m.lora_bias] == [(16,), (16,)]
    assert [(b.layer, b.module, b.ref.shape) for b in manifest.biases] == [
        (0, "self_attn.k_proj", (8,)),
        (0, "self_attn.q_proj", (16,)),
    ]
    assert manifest.num_parameters == 2 * (4 * 16 + 16 * 4 + 16) + 8 + 16


@pytest.mark.parametrize(
    ("fields", "vectors", "text"),
    [
        ({"use_dora": True}, {}, "no lora_magnitude_vector"),
        ({"use_dora": True}, {"Q__lora_magnitude_vector": [16]}, "no lora_magnitude_vector"),
        ({}, {"Q__lora_magnitude_vector": [16]}, "use_dora is false"),
        (
            {"use_dora": True},
            {"Q__lora_magnitude_vector": [8], "Q1__lora_magnitude_vector": [16]},
            r"shape \[8\]",
        ),
        (
            {"use_dora": True},
            {"Q__lora_magnitude_vector": [1, 16], "Q1__lora_magnitude_vector": [16]},
            r"shape \[1, 16\]",
        ),
        (
            {"use_dora": True},
            {"Q__lora_magnitude_vector": [16], "Q__lora_magnitude_vector_DOT_default": [16]},
            "twice",
        ),
        ({"use_dora": True}, {"K__lora_magnitude_vector": [8]}, "no lora_A"),
        ({"lora_bias": True}, {"Q__lora_B_DOT_bias": [16]}, "no lora_B.bias"),
        ({}, {"Q__lora_B_DOT_bias": [16]}, "lora_bias is false"),
        ({}, {"Q__bias": [16]}, "bias is 'none'"),
        ({"bias": "lora_only"}, {"K__bias": [8]}, "bias is 'lora_only'"),
        ({"bias": "all"}, {"Q__bias": [16], "Q__base_layer_DOT_bias": [16]}, "twice"),
        ({"bias": "all"}, {"Q__bias": [16, 1]}, "vector"),
    ],
)
def test_vectors_that_config_and_matrices_contradict(
    fields: dict[str, Any], vectors: dict[str, list[int]], text: str
) -> None:
    with pytest.raises(BadWeightsError, match=text):
        parse_adapter(config(**fields), with_vectors(**vectors))


@pytest.mark.parametrize("name", [f"{Q}.lora_magnitude_vector", f"{Q}.bias", f"{Q}.lora_B.bias"])
def test_non_finite_vectors_are_refused(name: str) -> None:
    part = name.removeprefix(f"{Q}.")
    fields: dict[str, Any] = {"bias": {"bias": "all"}, "lora_B.bias": {"lora_bias": True}}.get(
        part, {"use_dora": True}
    )
    bad = ("F32", [16], b"\x00\x00\xc0\x7f" * 16)
    tensors = {**lora_tensors(), f"{Q1}.{part}": tensor([16]), name: bad}
    with pytest.raises(NonFiniteError) as caught:
        parse_adapter(config(**fields), safetensors(tensors))
    assert caught.value.metadata["tensor"] == name


def test_non_finite_values_are_refused() -> None:
    tensors = lora_tensors()
    kind, shape, raw = tensors[B0]
    tensors[B0] = (kind, shape, raw[:-4] + b"\x00\x00\xc0\x7f")
    with pytest.raises(NonFiniteError) as caught:
        parse_adapter(config(), safetensors(tensors))
    assert caught.value.metadata["tensor"] == B0


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_bad_patterns_are_refused_by_field(field: str) -> None:
    weights = safetensors(lora_tensors())
    with pytest.raises(BadConfigError, match=field):
        parse_adapter(config(**{field: {"(": 4}}), weights)
    many = {f"(q_proj|x{i})": 4 for i in range(100)}
    with pytest.raises(BadConfigError, match=field):
        parse_adapter(config(**{field: many}), weights)


def test_hostile_target_regex_is_refused_in_bounded_time() -> None:
    bomb = "(" + "|".join([f"(.*a{i})*" for i in range(150)]) + ")*b"
    layers = range(200)
    tensors = {
        key(layer, "self_attn.q_proj", m): tensor([4, 16] if m == "A" else [16, 4])
        for layer in layers
        for m in "AB"
    }
    with pytest.raises(BadConfigError, match="alpha_pattern"):
        parse_adapter(config(alpha_pattern={bomb: 1, bomb + "c": 2}), safetensors(tensors))


def test_keys_of_config_reach_no_message_unbounded() -> None:
    with pytest.raises(BadConfigError) as caught:
        parse_adapter(config(rank_pattern={"(" * 2000: 4}), safetensors(lora_tensors()))
    assert len(caught.value.message) < 500
    assert len(json.dumps(caught.value.metadata)) < 500
