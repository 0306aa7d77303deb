"""config.json that is refused because it is nonsense or not served exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dataplane.errors import ModelNotFoundError, UnsupportedModelError
from dataplane.models.config_json import load_config, parse_config
from tests.dataplane.models.configs import LLAMA, family


def rope(**fields: Any) -> dict[str, Any]:
    return {"rope_scaling": fields}


LLAMA3 = {"rope_type": "llama3", "factor": 8}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("Bloom", {}, "architectures"),
        ("Llama", {"hidden_act": "relu"}, "hidden_act"),
        ("Gemma2", {"hidden_activation": "gelu"}, "hidden_activation"),
        ("Llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("Llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("Gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("Llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("Gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping"),
        ("Gemma2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("Gemma2", {"layer_types": ["chunked_attention"] * 6}, "layer_types"),
        ("Gemma2", {"sliding_window": None}, "sliding_window"),
        ("Phi3", {"sliding_window": -1}, "sliding_window"),
        ("Llama", rope(rope_type="linear"), "rope_parameters.factor"),
        ("Llama", rope(rope_type="linear", factor=-2), "rope_parameters.factor"),
        ("Llama", rope(rope_type="linear", factor=2, mrope_section=[1]), "mrope_section"),
        ("Llama", rope(rope_type="proportional", factor=2), "rope_parameters.rope_type"),
        ("Llama", rope(**LONG), "rope_parameters.rope_type"),
        ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("Llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_att"),
        ("Llama", {"rope_theta": 0.5}, "rope_theta"),
        (
            "Llama",
            rope(rope_type="llama3", factor=8, low_freq_factor=4, high_freq_factor=4),
            "high",
        ),
        ("Llama", rope(**LLAMA3), "low_freq_factor"),
        ("Phi3", rope(**{**LONG, "short_factor": [1.0] * 7}), "short_factor"),
        ("Phi3", rope(**{**LONG, "short_factor": ["a"] * 8}), "short_factor"),
        ("Phi3", {"partial_rotary_factor": 0.3, "head_dim": 10}, "partial_rotary_factor"),
        ("Phi3", {"original_max_position_embeddings": 1, **rope(**LONG)}, "original_max"),
        ("Gemma3", {"rope_parameters": {"rope_type": "linear", "factor": 2}}, "rope_parameters"),
        ("Gemma3", rope(type="linear", factor=2), "rope_scaling.type"),
        ("Gemma3", rope(rope_type="yarn", factor=2, truncate=False), "truncate"),
        ("Gemma", {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"}, "hidden_act"),
        ("Gemma", {"hidden_activation": "gelu_new"}, "hidden_activation"),
        (
            "Gemma",
            {"num_key_value_heads": 4, "final_logit_softcapping": 3.0},
            "final_logit_softcapping",
        ),
        ("Granite", {"residual_multiplier": 0}, "residual_multiplier"),
        ("Granite", {"logits_scaling": float("inf")}, "logits_scaling"),
        ("Granite", {"embedding_multiplier": "12"}, "embedding_multiplier"),
        ("Granite", {"attention_multiplier": None}, "attention_multiplier"),
        ("SmolLM3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("SmolLM3", {"no_rope_layers": [1, 0, 1, 2, 1, 0]}, "no_rope_layers"),
        ("SmolLM3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ("SmolLM3", {"layer_types": ["sliding_attention"] * 6}, "layer_types"),
        ("Cohere", {"logit_scale": None}, "logit_scale"),
        ("Cohere", {"logit_scale": 0}, "logit_scale"),
        ("Cohere", {"use_qk_norm": 1}, "use_qk_norm"),
        ("Cohere", {"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ("Cohere", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("Cohere2", {"use_qk_norm": True}, "use_qk_norm"),
        ("Cohere2", {"head_dim": 32}, "head_dim"),
        ("Cohere2", {"sliding_window": None}, "sliding_window"),
        ("Phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("Phi", {"hidden_act": "silu"}, "hidden_act"),
        ("Phi", {"hidden_act": "gelu"}, "hidden_act"),
        ("Phi", {"partial_rotary_factor": 0.2}, "partial_rotary_factor"),
        ("StableLm", {"qk_layernorm": True}, "qk_layernorm"),
        ("StableLm", {"use_parallel_residual": "yes"}, "use_parallel_residual"),
        ("StableLm", {"head_dim": 32}, "head_dim"),
        ("Starcoder2", {"norm_epsilon": math.nan}, "norm_epsilon"),
        ("Starcoder2", {"use_bias": 0}, "use_bias"),
        ("Arcee", {"hidden_act": "silu"}, "hidden_act"),
        ("Llama", {"hidden_act": "relu2"}, "hidden_act"),
        ("Ministral", {"layer_types": ["full_attention"]}, "layer_types"),
        ("Exaone4", {"sliding_window": None}, "sliding_window"),
        ("Olmo3", {"rope_theta": 1e4}, "rope_theta"),
        ("Olmo3", {"rope_parameters": {"rope_type": "linear", "factor": 2}}, "rope_parameters"),
    ],
)
def test_what_is_not_served_exactly_is_refused(
    name: str, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        parse_config(family(name, **{"num_key_value_heads": 4, **fields}))
    assert caught.value.reason == "MODEL_UNSUPPORTED"
    assert field in caught.value.metadata["field"]
    assert field in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"rms_norm_eps": None},
        {"head_dim": [1]},
        {"rope_scaling": "linear"},
        {"architectures": 5},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 2.7},
        {"vocab_size": "32"},
        {"vocab_size": -5},
        {"intermediate_size": 0},
        {"num_key_value_heads": -2},
        {"head_dim": -4},
        {"max_position_embeddings": 0},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": -1},
        {"tie_word_embeddings": "false"},
        {"attention_bias": "no"},
        {"eos_token_id": [None]},
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        parse_config({**LLAMA, **fields})


def test_missing_fields_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="hidden_size"):
        parse_config({k: v for k, v in LLAMA.items() if k != "hidden_size"})
    with pytest.raises(ModelNotFoundError):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match="JSON"):
        load_config(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "3", "null", "[" * 100_000])
def test_files_that_are_no_object_are_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).write_text(text)
    with pytest.raises(UnsupportedModelError, match=name) as caught:
        load_config(tmp_path)
    assert caught.value.reason == "CONFIG_INVALID"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Llama", "num_hidden_layers", 10**18),
        ("Llama", "num_attention_heads", 1 << 31),
        ("Llama", "head_dim", 1 << 31),
        ("Llama", "vocab_size", 10**30),
        ("Llama", "intermediate_size", 1 << 31),
        ("Llama", "max_position_embeddings", 10**30),
        ("Gemma2", "query_pre_attn_scalar", -1.0),
        ("Gemma2", "query_pre_attn_scalar", math.nan),
        ("Gemma2", "query_pre_attn_scalar", math.inf),
        ("Gemma2", "attn_logit_softcapping", math.inf),
        ("Gemma2", "final_logit_softcapping", math.inf),
    ],
)
def test_numbers_that_no_model_has_are_refused(name: str, field: str, value: float) -> None:
    with pytest.raises(UnsupportedModelError, match=field) as caught:
        parse_config(family(name, **{field: value}))
    assert caught.value.reason == "MODEL_UNSUPPORTED"
