"""What a config.json of each architecture means where it is silent: transformers' defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ExpertsKind = Literal["", "mixtral", "qwen", "qwen shared"]
"""No mixtures of experts, or whose fields and defaults count."""


@dataclass(frozen=True)
class Family:
    """Fields that are None or False here are decided by config.json or absent altogether."""

    max_position_embeddings: int
    head_dim: int | None = None
    num_kv_heads: int | None = None  # None: as many as query heads
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    activation_field: str = "hidden_act"
    activation: str = "silu"
    activation_names: tuple[tuple[str, str], ...] = ()  # names that mean another activation
    older_activation_field: str = ""  # where it is set, it has to say the same
    qkv_bias: bool | None = None  # None: the field `qkv_bias_field` decides
    qkv_bias_field: str = "attention_bias"
    attention_bias: bool = False
    o_bias: bool | None = None  # None: the field `o_bias_field` decides
    o_bias_field: str = "attention_bias"
    attention_out_bias: bool = False
    mlp_bias: bool = False  # whether the field `mlp_bias` is known
    qk_norm: bool = False
    whole_qk_norms: bool = False  # of all heads together (OLMo 2 and 3)
    input_norms: bool = True  # of attention and the MLP
    fused_projections: bool = False  # qkv_proj and gate_up_proj are modules of their own
    # Which layers slide: none; all; those that `layer_types` (or `max_window_layers`) says once
    # `use_sliding_window` is set, or those without rope; those that `layer_types` (or the pattern)
    # says.
    sliding: Literal["never", "always", "flag", "without rope", "pattern"] = "never"
    sliding_window: int | None = None
    window_pattern: int = 0  # every n-th layer attends to everything, the others slide
    window_pattern_field: str = ""  # the field that overrides `window_pattern`
    # Gemma
    unit_offset_norms: bool = False  # norms multiply by 1 + weight, in float32
    sandwich_norms: bool = False  # norms after attention and after the MLP too
    scaled_embeddings: bool = False  # embeddings times sqrt(hidden_size)
    query_pre_attn_scalar: float | None = None  # None: head_dim
    attention_soft_cap: float | None = None
    attention_soft_cap_known: bool = False
    logit_soft_cap: float | None = None
    logit_soft_cap_known: bool = False
    multipliers: bool = False  # of embeddings, attention, residuals and logits (Granite)
    # Rotary embedding
    rope_theta: float = 10000.0
    local_rope_theta: float | None = None  # sliding layers have a rope of their own
    local_theta_field: str = ""  # the older field that overrides it
    partial_rotary: bool = False  # whether `partial_rotary_factor` is known
    rope_types: frozenset[str] = frozenset({"default", "linear", "dynamic", "llama3", "yarn"})
    rope_aliases: tuple[tuple[str, str], ...] = ()
    original_context: int | None = None
    rope_interval: int = 0  # every n-th layer has no rope
    experts: ExpertsKind = ""  # whose mixtures of experts it has


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(2048, mlp_bias=True),
    "MistralForCausalLM": Family(
        131072,
        num_kv_heads=8,
        qkv_bias=False,
        o_bias=False,
        sliding="always",
        sliding_window=4096,
    ),
    "Qwen2ForCausalLM": Family(
        32768,
        num_kv_heads=32,
        qkv_bias=True,
        o_bias=False,
        sliding="flag",
        sliding_window=4096,
    ),
    "Qwen3ForCausalLM": Family(
        32768, num_kv_heads=32, head_dim=128, qk_norm=True, sliding="flag", sliding_window=4096
    ),
    "GemmaForCausalLM": Family(
        8192,
        head_dim=256,
        num_kv_heads=16,
        tie_word_embeddings=True,
        activation="gelu_pytorch_tanh",
        activation_names=(("gelu", "gelu_pytorch_tanh"),),
        older_activation_field="hidden_activation",
        unit_offset_norms=True,
        scaled_embeddings=True,
    ),
    "Gemma2ForCausalLM": Family(
        8192,
        head_dim=256,
        num_kv_heads=4,
        tie_word_embeddings=True,
        activation_field="hidden_activation",
        activation="gelu_pytorch_tanh",
        sliding="pattern",
        sliding_window=4096,
        window_pattern=2,
        unit_offset_norms=True,
        sandwich_norms=True,
        scaled_embeddings=True,
        query_pre_attn_scalar=256,
        attention_soft_cap=50.0,
        attention_soft_cap_known=True,
        logit_soft_cap=30.0,
        logit_soft_cap_known=True,
    ),
    "Gemma3ForCausalLM": Family(
        131072,
        head_dim=256,
        num_kv_heads=4,
        tie_word_embeddings=True,
        activation_field="hidden_activation",
        activation="gelu_pytorch_tanh",
        qk_norm=True,
        sliding="pattern",
        sliding_window=4096,
        window_pattern=6,
        window_pattern_field="sliding_window_pattern",
        unit_offset_norms=True,
        sandwich_norms=True,
        scaled_embeddings=True,
        query_pre_attn_scalar=256,
        logit_soft_cap_known=True,
        rope_theta=1_000_000.0,
        local_rope_theta=10_000.0,
        local_theta_field="rope_local_base_freq",
    ),
    "Phi3ForCausalLM": Family(
        4096,
        rms_norm_eps=1e-5,
        qkv_bias=False,
        o_bias=False,
        fused_projections=True,
        sliding="always",
        partial_rotary=True,
        rope_types=frozenset({"default", "longrope"}),
        rope_aliases=(("su", "longrope"), ("yarn", "longrope")),
        original_context=4096,
    ),
    "Olmo2ForCausalLM": Family(
        2048,
        rms_norm_eps=1e-5,
        qk_norm=True,
        whole_qk_norms=True,
        input_norms=False,
        sandwich_norms=True,
    ),
    "Olmo3ForCausalLM": Family(
        2048,
        rms_norm_eps=1e-5,
        qk_norm=True,
        whole_qk_norms=True,
        input_norms=False,
        sandwich_norms=True,
        sliding="pattern",
        sliding_window=4096,
        window_pattern=4,
        rope_theta=500_000.0,
        local_rope_theta=500_000.0,
    ),
    "GraniteForCausalLM": Family(2048, mlp_bias=True, multipliers=True),
    "SeedOssForCausalLM": Family(
        524288,
        head_dim=128,
        num_kv_heads=8,
        attention_bias=True,
        o_bias_field="attention_out_bias",
        mlp_bias=True,
    ),
    "SmolLM3ForCausalLM": Family(
        32768,
        num_kv_heads=4,
        tie_word_embeddings=True,
        mlp_bias=True,
        sliding="without rope",
        rope_theta=2_000_000.0,
        rope_interval=4,
    ),
    "MixtralForCausalLM": Family(
        131072,
        num_kv_heads=8,
        rms_norm_eps=1e-5,
        qkv_bias=False,
        o_bias=False,
        sliding="always",
        rope_theta=1_000_000.0,
        experts="mixtral",
    ),
    "Qwen2MoeForCausalLM": Family(
        32768,
        num_kv_heads=16,
        qkv_bias_field="qkv_bias",
        attention_bias=True,
        o_bias=False,
        experts="qwen shared",
    ),
    "Qwen3MoeForCausalLM": Family(32768, num_kv_heads=4, qk_norm=True, experts="qwen"),
}
