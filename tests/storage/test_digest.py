from typing import Any

import pytest

from storage.adapter.manifest import digest_of, parse_adapter
from tests.storage.samples import config, key, lora_tensors, safetensors, tensor

BASE = digest_of(config(), safetensors(lora_tensors()))


def test_digest_is_stable() -> None:
    # Registered adapters outlive this process: a change here orphans every one of them.
    weights = safetensors(
        {
            key(0, "self_attn.q_proj", "A"): ("F32", [4, 16], bytes(256)),
            key(0, "self_attn.q_proj", "B"): ("BF16", [32, 4], bytes(range(64)) * 4),
        }
    )
    pinned = "ac654269ac034abd93e0dbfd123bed102f698e436dd5203b8e2619df539b63eb"
    assert digest_of(config(), weights) == pinned


def test_parsing_gives_the_same_digest() -> None:
    assert parse_adapter(config(), safetensors(lora_tensors())).manifest.digest == BASE


@pytest.mark.parametrize(
    "fields",
    [
        {"base_model_name_or_path": "elsewhere"},
        {"task_type": "CAUSAL_LM"},
        {"fan_in_fan_out": True},
        {"lora_dropout": 0.5},
        {"inference_mode": True},
        {"target_modules": ["q_proj", "q_proj"]},
        {"r": 32, "rank_pattern": {"q_proj": 4}},
        {"lora_alpha": 1, "alpha_pattern": {"q_proj": 8}},
        {"lora_alpha": 4, "use_rslora": True},
    ],
)
def test_config_that_computes_the_same_keeps_the_digest(fields: dict[str, Any]) -> None:
    assert digest_of(config(**fields), safetensors(lora_tensors())) == BASE


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": 9},
        {"use_rslora": True},
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 1}},
        {"target_modules": ["q_proj", "v_proj"]},
        {"layers_to_transform": [0, 1]},
        {"exclude_modules": ["v_proj"]},
    ],
)
def test_config_that_computes_or_selects_otherwise_changes_it(fields: dict[str, Any]) -> None:
    assert digest_of(config(**fields), safetensors(lora_tensors())) != BASE


def test_order_spelling_and_metadata_of_the_file_do_not_matter() -> None:
    tensors = lora_tensors()
    reordered = dict(reversed(tensors.items()))
    assert digest_of(config(), safetensors(reordered, {"format": "pt"})) == BASE
    infix = {k.replace(".weight", ".default.weight"): v for k, v in tensors.items()}
    assert digest_of(config(), safetensors(infix)) == BASE
    shuffled = config(target_modules=["v_proj", "q_proj"])
    assert digest_of(shuffled, safetensors(tensors)) == digest_of(
        config(target_modules=["q_proj", "v_proj"]), safetensors(tensors)
    )


def test_every_byte_dtype_and_place_of_weights_matters() -> None:
    tensors = lora_tensors()
    name = key(1, "self_attn.q_proj", "B")
    kind, shape, raw = tensors[name]
    flipped = bytes([raw[0] ^ 1]) + raw[1:]
    assert digest_of(config(), safetensors({**tensors, name: (kind, shape, flipped)})) != BASE
    half = lora_tensors(dtype="F16")
    as_bfloat = {k: ("BF16", s, r) for k, (_, s, r) in half.items()}
    assert digest_of(config(), safetensors(half)) != digest_of(config(), safetensors(as_bfloat))
    other = key(0, "self_attn.q_proj", "B")
    swapped = {**tensors, name: tensors[other], other: tensors[name]}
    assert digest_of(config(), safetensors(swapped)) != BASE


def test_vectors_and_what_they_are_for_matter() -> None:
    name = "base_model.model.model.layers.{}.self_attn.q_proj"
    digests: set[str] = {BASE}
    for part, fields in (
        ("lora_magnitude_vector", {"use_dora": True}),
        ("lora_B.bias", {"lora_bias": True}),
        ("bias", {"bias": "all"}),
        ("bias", {"bias": "lora_only"}),
    ):
        for seed in (1, 2):
            vectors = {f"{name.format(n)}.{part}": tensor([16], seed=seed) for n in (0, 1)}
            digests.add(digest_of(config(**fields), safetensors({**lora_tensors(), **vectors})))
    assert len(digests) == 9
    spelled = {f"{name.format(n)}.base_layer.bias": tensor([16], seed=2) for n in (0, 1)}
    weights = safetensors({**lora_tensors(), **spelled})
    assert digest_of(config(bias="lora_only"), weights) in digests
