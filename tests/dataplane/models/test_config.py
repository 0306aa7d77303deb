"""config.json as transformers writes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import (
    ArceeConfig,
    Cohere2Config,
    CohereConfig,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GlmConfig,
    GraniteConfig,
    HeliumConfig,
    Jais2Config,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from dataplane.models.config_json import parse_config
from dataplane.models.shapes import layer_groups, layer_modules
from dataplane.models.weights import fingerprint
from tests.dataplane.models.configs import LLAMA, family


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
