"""config.json as transformers writes it, and what is refused because it is not served exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    ArceeConfig,
    Cohere2Config,
    CohereConfig,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GlmConfig,
    GraniteConfig,
    HeliumConfig,
    Jais2Config,
    LlamaConfig,
    MinistralConfig,
    Mistral3Config,
    MistralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PhiConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3VLConfig,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from dataplane.errors import ModelNotFoundError, UnsupportedModelError
from dataplane.models.config import load_config, parse_config
from dataplane.models.shapes import layer_groups, layer_modules
from dataplane.models.weights import fingerprint

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 32,
}


def family(name: str, **fields: Any) -> dict[str, Any]:
    return {**LLAMA, "architectures": [f"{name}ForCausalLM"], **fields}


@pytest.mark.parametrize(
    ("name", "config_class"),
    [
        ("Llama", LlamaConfig),
        ("Mistral", MistralConfig),
        ("Qwen2", Qwen2Config),
        ("Qwen3", Qwen3Config),
        ("Gemma2", Gemma2Config),
        ("Gemma3", Gemma3TextConfig),
        ("Phi3", Phi3Config),
        ("Gemma", GemmaConfig),
        ("Granite", GraniteConfig),
        ("SeedOss", SeedOssConfig),
        ("SmolLM3", SmolLM3Config),
        ("Olmo2", Olmo2Config),
        ("Olmo3", Olmo3Config),
        ("Glm", GlmConfig),
        ("Glm4", Glm4Config),
        ("Cohere", CohereConfig),
        ("Cohere2", Cohere2Config),
        ("Starcoder2", Starcoder2Config),
        ("Phi", PhiConfig),
        ("StableLm", StableLmConfig),
        ("Nemotron", NemotronConfig),
        ("Jais2", Jais2Config),
        ("Arcee", ArceeConfig),
        ("Helium", HeliumConfig),
        ("Ernie4_5", Ernie4_5Config),
        ("Exaone4", Exaone4Config),
        ("Ministral", MinistralConfig),
    ],
)
def test_silence_means_what_transformers_takes_it_for(name: str, config_class: Any) -> None:
    """A config of only the required fields, against the one that transformers fills in itself."""
    num_heads = 40 if name == "Helium" else 64  # a multiple of its key heads
    sizes = {"num_attention_heads": num_heads, "hidden_size": 1024, "intermediate_size": 96}
    bare = family(name, **sizes)
    full = config_class(
        **{k: v for k, v in bare.items() if k != "architectures"},
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    written = {
        **json.loads(full.to_json_string(use_diff=False)),
        "architectures": [f"{name}ForCausalLM"],
    }
    assert parse_config(bare) == parse_config(written)


STABLE = family("StableLm", num_key_value_heads=4)


def test_gemma_layers_alternate() -> None:
    gemma2 = parse_config(family("Gemma2", sliding_window=16))
    assert gemma2.sliding_windows == (16, None) * 3
    assert gemma2.layer_ropes == (0,) * 6
    gemma3 = parse_config(family("Gemma3", sliding_window=16, sliding_window_pattern=3))
    assert gemma3.sliding_windows == (16, 16, None) * 2
    assert gemma3.layer_ropes == (1, 1, 0) * 2
    assert [rope.theta for rope in gemma3.ropes] == [1e6, 1e4]


def test_gemma3_of_the_hub_scales_only_its_global_rope() -> None:
    config = parse_config(
        family(
            "Gemma3",
            rope_theta=1e6,
            rope_local_base_freq=2e4,
            rope_scaling={"factor": 8.0, "rope_type": "linear"},
        )
    )
    assert [(rope.kind, rope.theta, rope.factor) for rope in config.ropes] == [
        ("linear", 1e6, 8.0),
        ("default", 2e4, 1.0),
    ]


def test_a_sliding_rope_without_a_base_has_the_older_field_s() -> None:
    kinds = {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}
    config = parse_config(family("Gemma3", rope_local_base_freq=2e4, rope_parameters=kinds))
    assert [rope.theta for rope in config.ropes] == [1e6, 2e4]


def test_olmo3_of_the_hub_scales_only_its_full_layers() -> None:
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}
    config = parse_config(family("Olmo3", rope_theta=5e5, rope_scaling=yarn, rms_norm_eps=1e-6))
    assert [(rope.kind, rope.theta) for rope in config.ropes] == [("yarn", 5e5), ("default", 5e5)]
    assert config.layer_ropes == (1, 1, 1, 0, 1, 1)
    assert config.sliding_windows == (4096, 4096, 4096, None, 4096, 4096)
    kinds = {"full_attention": yarn, "sliding_attention": {"rope_theta": 1e4}}
    config = parse_config(family("Olmo3", rope_theta=1e6, rope_parameters=kinds))
    assert [rope.theta for rope in config.ropes] == [1e6, 1e4]
    plain = parse_config(family("Olmo3", rope_local_base_freq=2e4))
    assert [rope.theta for rope in plain.ropes] == [5e5]  # which is Gemma's


def test_longrope_is_served_as_far_as_it_is_exact() -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = parse_config(
        family(
            "Phi3",
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            rope_scaling=scaling,
        )
    )
    assert config.max_position_embeddings == 4096
    assert config.ropes[0].factor == 32.0


def test_phi3_has_fused_modules() -> None:
    config = parse_config(family("Phi3", num_key_value_heads=2))
    assert layer_modules(config) == {
        "self_attn.qkv_proj": (64, 128),
        "self_attn.o_proj": (64, 64),
        "mlp.gate_up_proj": (64, 192),
        "mlp.down_proj": (96, 64),
    }
    assert [len(group.projections) for group in layer_groups(config, 0).values()] == [1, 1, 1, 1]


def test_fingerprints_differ_with_the_shape() -> None:
    plain = fingerprint(parse_config(LLAMA))
    assert fingerprint(parse_config({**LLAMA, "eos_token_id": None})) == plain
    for change in ({"rope_theta": 5e5}, {"vocab_size": 33}, {"attention_bias": True}):
        assert fingerprint(parse_config({**LLAMA, **change})) != plain
    stable = [
        fingerprint(parse_config({**STABLE, "use_parallel_residual": parallel}))
        for parallel in (False, True)
    ]
    assert stable[0] != stable[1]


def test_modules_have_the_names_of_their_family() -> None:
    phi = parse_config(family("Phi"))
    assert layer_modules(phi) == {
        **{f"self_attn.{name}": (64, 64) for name in ("q_proj", "k_proj", "v_proj", "dense")},
        "mlp.fc1": (64, 96),
        "mlp.fc2": (96, 64),
    }
    assert all(group.has_bias for group in layer_groups(phi, 0).values())
    assert [*layer_modules(parse_config(family("Starcoder2")))][-2:] == ["mlp.c_fc", "mlp.c_proj"]
    assert [*layer_modules(parse_config(family("Arcee")))][-2:] == ["mlp.up_proj", "mlp.down_proj"]
    glm = parse_config(family("Glm"))
    assert [*layer_modules(glm)][-2:] == ["mlp.gate_up_proj", "mlp.down_proj"]
    biases = {name: group.has_bias for name, group in layer_groups(glm, 0).items()}
    assert biases == {"qkv": True, "o": False, "gate_up": False, "down": False}
    assert glm.ropes[0].rotary_dim == 64


def test_ropes_of_sliding_layers_alone() -> None:
    command = parse_config(family("Cohere2", sliding_window=9, sliding_window_pattern=3))
    assert command.sliding_windows == (9, 9, None) * 2
    assert command.layer_ropes == (0, 0, 1) * 2
    assert [rope.kind for rope in command.ropes] == ["default", "none"]
    full = ["full_attention"] * 6
    ropeless = parse_config(family("Cohere2", layer_types=full))
    assert ropeless.layer_ropes == (1,) * 6
    of_exaone = family("Exaone4", num_key_value_heads=4, layer_types=full)
    exaone = parse_config({**of_exaone, "sliding_window_pattern": "LLLG"})
    assert exaone.layer_ropes == (1,) * 6
    exaone = parse_config({**of_exaone, "sliding_window": None})
    assert exaone.layer_ropes == (0,) * 6


def test_a_head_dim_of_null_is_what_is_left_of_the_hidden_size() -> None:
    assert parse_config(family("Ernie4_5", head_dim=None)).head_dim == 16
    assert parse_config(family("Ernie4_5")).head_dim == 128


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


def test_end_tokens_beyond_the_vocabulary_are_left_out() -> None:
    fields = {**LLAMA, "eos_token_id": [2, 40]}
    assert parse_config(fields).eos_token_ids == (2,)
    assert parse_config(fields, {"eos_token_id": -1}).eos_token_ids == ()
    assert parse_config(fields, {"eos_token_id": [31, 32]}).eos_token_ids == (31,)


def test_granite_s_factors_are_folded_where_adapters_do_not_see_them() -> None:
    factors = {"embedding_multiplier": 12, "residual_multiplier": 0.25, "rms_norm_eps": 1e-5}
    config = parse_config(family("Granite", **factors, attention_multiplier=0.5, logits_scaling=8))
    assert (config.embedding_scale, config.rms_norm_eps) == (48.0, 16e-5)
    assert (config.attention_scale, config.logit_divisor) == (0.5, 8.0)
    assert not config.rounds_embedding_scale
    other = parse_config(family("Granite", **factors, attention_multiplier=0.5))
    assert fingerprint(config) != fingerprint(other)


def test_smollm3_s_layers_without_rope() -> None:
    plain = parse_config(family("SmolLM3"))
    assert plain.layer_ropes == (0, 0, 0, 1, 0, 0)
    assert plain.sliding_windows == (None,) * 6
    listed = parse_config(
        family("SmolLM3", no_rope_layers=[0, 1] * 3, use_sliding_window=True, sliding_window=9)
    )
    assert listed.layer_ropes == (1, 0) * 3
    assert listed.sliding_windows == (9, None) * 3
    assert parse_config(family("SmolLM3", no_rope_layers=[1] * 6)).layer_ropes == (0,) * 6


SEEING = {
    "Gemma3": Gemma3Config,
    "Mistral3": Mistral3Config,
    "Qwen2VL": Qwen2VLConfig,
    "Qwen2_5_VL": Qwen2_5_VLConfig,
    "Qwen3VL": Qwen3VLConfig,
}
EYES = {"Gemma3": {"model_type": "siglip_vision_model"}, "Mistral3": {"model_type": "pixtral"}}


def seeing(name: str, text: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "text_config": text or {},
        "vision_config": {"hidden_size": 16},
        **fields,
    }


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize(
    "text",
    [
        {"pad_token_id": 0},
        {  # as google/gemma-3-4b-it has it
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    ],
)
def test_a_silent_text_config_means_what_transformers_takes_it_for(
    name: str, text: dict[str, Any]
) -> None:
    full = SEEING[name](text_config=dict(text), vision_config=EYES.get(name, {}))
    written = json.loads(full.text_config.to_json_string(use_diff=False))
    ends = {"eos_token_id": [1, 106]}
    config = parse_config(seeing(name, text, **ends))
    assert config == parse_config(seeing(name, written, dtype="float32", **ends))
    assert config.num_heads == full.text_config.num_attention_heads
    assert config.vocab_size == full.text_config.vocab_size
    assert config.is_text_part
    assert config.eos_token_ids == (1, 106)


def test_the_whole_model_s_dtype_and_quantisation_are_the_text_part_s() -> None:
    text = {"torch_dtype": "float32", "dtype": "float32"}
    assert parse_config(seeing("Gemma3", text, torch_dtype="bfloat16")).dtype == "bfloat16"
    assert parse_config(seeing("Gemma3", text, dtype="float16")).dtype == "float16"
    assert parse_config(seeing("Gemma3", {"torch_dtype": "bfloat16"})).dtype == "bfloat16"
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    assert parse_config(seeing("Gemma3", **quantised)).quantization is not None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (seeing("Gemma3", text_config=None), "text_config"),
        (seeing("Gemma3", text_config="gemma3_text"), "text_config"),
        (seeing("Mistral3", {"model_type": "ministral3"}), "text_config.model_type"),
        (seeing("Gemma3", {"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (seeing("Gemma3", {"use_bidirectional_attention": True}), "use_bidirectional_attention"),
        (seeing("Gemma3", tie_word_embeddings=False), "tie_word_embeddings"),
        (seeing("Gemma3", tie_word_embeddings="no"), "tie_word_embeddings"),
        (seeing("Mistral3", {"tie_word_embeddings": 0}), "tie_word_embeddings"),
        (seeing("Gemma3", {"hidden_size": -1}), "hidden_size"),
        (seeing("Llava"), "architectures"),
        (seeing("Qwen3VL", text_config=None), "text_config"),
        (seeing("Qwen3VL", {"tie_word_embeddings": True}), "tie_word_embeddings"),
        (seeing("Qwen2VL", {"model_type": "qwen2_5_vl_text"}), "text_config.model_type"),
        (seeing("Qwen2VL", {"rope_scaling": {"type": "mrope", "odd": 1}}), "rope_parameters.odd"),
    ],
)
def test_what_sees_and_is_not_served_exactly_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        parse_config(fields)
    assert field in caught.value.metadata["field"]


def test_what_text_is_not_asked_makes_no_difference_to_qwen_vl() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    plain = parse_config(seeing("Qwen2_5_VL", {"rope_scaling": rope}))
    parted = {**rope, "mrope_section": [16, 24, 24]}
    assert parse_config(seeing("Qwen2_5_VL", {"rope_scaling": parted})) == plain
    assert plain.ropes[0].kind == "yarn"
    sliding = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}
    assert parse_config(seeing("Qwen3VL", sliding)) == parse_config(seeing("Qwen3VL"))
    assert parse_config(seeing("Qwen2_5_VL", sliding)).sliding_windows[0] == 9
    tied = parse_config(seeing("Qwen2_5_VL", {"tie_word_embeddings": True}))
    assert (tied.tie_word_embeddings, tied.is_tie_in_doubt) == (True, False)


def test_a_head_of_its_own_unties_mistral_3() -> None:
    silent = parse_config(seeing("Mistral3"))
    assert (silent.tie_word_embeddings, silent.is_tie_in_doubt) == (True, True)
    told = parse_config(seeing("Mistral3", tie_word_embeddings=False))
    assert (told.tie_word_embeddings, told.is_tie_in_doubt) == (False, False)
    tied = parse_config(seeing("Gemma3"))
    assert (tied.tie_word_embeddings, tied.is_tie_in_doubt) == (True, False)


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
