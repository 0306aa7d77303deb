"""Activated LoRA: what of its files is read, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from storage.adapter.activation import MAX_INVOCATION_TOKENS
from storage.adapter.config import parse_config
from storage.adapter.manifest import AdapterManifest, digest_of, parse_adapter
from storage.adapter.match import check_base
from storage.errors import (
    AdapterMismatchError,
    BadConfigError,
    MergeRefusedError,
    UnsupportedFeatureError,
)
from storage.files import AdapterFiles
from storage.limits import DEFAULT_LIMITS
from storage.merge.combine import merged_files
from storage.merge.recipe import Component, make_recipe
from tests.storage.merge_samples import ordered, sample
from tests.storage.samples import SPEC, config, head_tensors, lora_tensors, safetensors, tensor

INVOCATION = [5, 31, 5]


def activated(**fields: Any) -> bytes:
    return config(**{"alora_invocation_tokens": INVOCATION, "task_type": "CAUSAL_LM", **fields})


def manifest_of(config_bytes: bytes, tensors: dict[str, Any]) -> AdapterManifest:
    return parse_adapter(config_bytes, safetensors(tensors)).manifest


def test_invocation_tokens_are_read() -> None:
    assert parse_config(activated()).invocation_tokens == (5, 31, 5)
    assert parse_config(activated(lora_bias=True, use_rslora=True)).invocation_tokens
    assert parse_config(config()).invocation_tokens == ()
    assert parse_config(config(alora_invocation_tokens=None)).invocation_tokens == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "1 to 256 token ids"),  # which PEFT never activates
        ("5", "1 to 256 token ids"),
        (5, "1 to 256 token ids"),
        ({"a": 1}, "1 to 256 token ids"),
        ([5] * (MAX_INVOCATION_TOKENS + 1), "a list of 257"),
        ([5, -1], "holds -1"),
        ([True], "holds True"),
        ([5.0], r"holds 5\.0"),
        ([1 << 31], "holds 2147483648"),
        ([[5]], "holds a list"),
    ],
)
def test_what_cannot_be_invocation_tokens(value: Any, text: str) -> None:
    with pytest.raises(BadConfigError, match=text) as caught:
        parse_config(activated(alora_invocation_tokens=value))
    assert "alora_invocation_tokens" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_type", None),
        ("task_type", "SEQ_CLS"),
        ("use_dora", True),
        ("init_lora_weights", "mica"),
        ("target_parameters", ["mlp.experts.down_proj"]),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [5]),
    ],
)
def test_what_peft_does_not_activate_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedFeatureError, match=name) as caught:
        parse_config(activated(**{name: value}))
    assert caught.value.metadata["field"] == name
    assert "alora_invocation_tokens" in str(caught.value)
    if name != "task_type":
        parse_config(activated(**{name: value, "alora_invocation_tokens": None}))


@pytest.mark.parametrize(
    ("module", "is_refused"),
    [
        ("model.embed_tokens", True),
        ("model.layers.0.mlp.experts", True),
        ("model.layers.0.mlp.experts.1.up_proj", True),
        ("model.layers.0.mlp.gate", True),
        ("model.layers.0.mlp.shared_expert.up_proj", True),
        ("model.layers.0.block_sparse_moe.gate", True),
        ("model.layers.0.mlp.gate_proj", False),
        ("lm_head", False),
    ],
)
def test_modules_that_peft_does_not_activate_are_refused(module: str, is_refused: bool) -> None:
    a, b = ("embedding_A", "embedding_B") if "embed" in module else ("A.weight", "B.weight")
    tensors = {
        f"base_model.model.{module}.lora_{a}": tensor([4, 16]),
        f"base_model.model.{module}.lora_{b}": tensor([24, 4]),
    }
    selecting = activated(target_modules=[module.rpartition(".")[2]])
    if not is_refused:
        assert manifest_of(selecting, tensors).config.invocation_tokens
        return
    with pytest.raises(UnsupportedFeatureError, match="alora_invocation_tokens") as caught:
        manifest_of(selecting, tensors)
    assert caught.value.metadata["module"] in module


def test_a_bias_of_the_head_is_refused() -> None:
    tensors = {**head_tensors(), "base_model.model.lm_head.base_layer.bias": tensor([32])}
    plain = config(target_modules=["lm_head"])
    assert manifest_of(plain, tensors).biases
    with pytest.raises(UnsupportedFeatureError, match="a bias of 'lm_head'"):
        manifest_of(activated(target_modules=["lm_head"]), tensors)


def test_the_tokens_are_part_of_the_identity() -> None:
    weights = safetensors(lora_tensors())
    digests = [
        digest_of(config(task_type="CAUSAL_LM", alora_invocation_tokens=tokens), weights)
        for tokens in (None, [5, 31], [31, 5], [5])
    ]
    assert len(set(digests)) == 4
    assert digests[0] == digest_of(config(), weights)


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    manifest = manifest_of(activated(), lora_tensors())
    check_base(manifest, SPEC)  # of 32
    with pytest.raises(AdapterMismatchError, match="token 32") as caught:
        check_base(manifest_of(activated(alora_invocation_tokens=[3, 32]), lora_tensors()), SPEC)
    assert caught.value.reason == "SHAPE_MISMATCH"
    assert caught.value.metadata["token"] == "32"


def test_merges_are_refused() -> None:
    parts = [sample(31), sample(577)]
    parts[1] = AdapterFiles(activated(), parts[1].weights, parts[1].uri)
    named = [
        Component(f"part{n}@1", 1.0, digest_of(part.config, part.weights), f"mem://h{n}/x")
        for n, part in enumerate(parts)
    ]
    with pytest.raises(MergeRefusedError, match="part1@1 is an activated LoRA") as caught:
        recipe = make_recipe("", named)
        merged_files(recipe, ordered(recipe, parts), DEFAULT_LIMITS)
    assert caught.value.metadata["component"] == "part1@1"
