"""What a config.json of each architecture means where it is silent: transformers' defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dataplane.models.traits import LLAMA_NORMS, PLAIN, SANDWICH, NormNames, Traits

ExpertsKind = Literal["", "mixtral", "qwen", "qwen shared"]
"""No mixtures of experts, or whose fields and defaults count."""


@dataclass(frozen=True)
class Family:
    """Fields that are None or False here are decided by config.json or absent altogether."""

    max_position_embeddings: int
    head_dim: int | None = None
    has_head_dim: bool = True  # whether the field `head_dim` is known
    num_kv_heads: int | None = None  # None: as many as query heads
    rms_norm_eps: float = 1e-6
    norm_eps_field: str = "rms_norm_eps"
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
    mlp_bias: bool | None = False  # None: the field `mlp_bias_field` decides
    mlp_bias_field: str = "mlp_bias"
    default_mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_field: str = ""  # the field that decides
    refused_flags: tuple[str, ...] = ()  # fields that change what is computed once they are set
    whole_qk_norms: bool = False  # of all heads together (OLMo 2 and 3)
    input_norms: bool = True  # of attention and the MLP
    fused_projections: bool = False  # qkv_proj and gate_up_proj are modules of their own
    # Which layers slide: none; all; those that `layer_types` (or `max_window_layers`) says once
    # `use_sliding_window` is set, or those without rope; those that `layer_types`
    # says, all where it is silent; those that `layer_types` (or the pattern) says.
    sliding: Literal["never", "always", "flag", "without rope", "types", "pattern"] = "never"
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
    logit_scale: float | None = None  # of logits; None: no such field (Cohere)
    # Rotary embedding
    rope_theta: float = 10000.0
    local_rope_theta: float | None = None  # sliding layers have a rope of their own
    local_theta_field: str = ""  # the older field that overrides it
    partial_rotary: bool = False  # whether `partial_rotary_factor` is known
    partial_rotary_factor: float = 1.0
    rope_types: frozenset[str] = frozenset({"default", "linear", "dynamic", "llama3", "yarn"})
    rope_aliases: tuple[tuple[str, str], ...] = ()
    original_context: int | None = None
    rope_interval: int = 0  # every n-th layer has no rope
    # Layers that do not slide have none: ever, or where there is a window.
    rope_slides: Literal["", "ever", "with window"] = ""
    experts: ExpertsKind = ""  # whose mixtures of experts it has
    traits: Traits = PLAIN
    parallel_residual_field: str = ""  # the field that decides on it
    norm_names: NormNames = LLAMA_NORMS


_GLM = Family(
    131072,
    head_dim=128,
    num_kv_heads=2,
    rms_norm_eps=1.5625e-7,
    attention_bias=True,
    o_bias=False,
    partial_rotary=True,
    partial_rotary_factor=0.5,
    traits=Traits(interleaved_rope=True, fused_gate_up=True),
)
_COHERE = Family(
    8192,
    rms_norm_eps=1e-5,
    norm_eps_field="layer_norm_eps",
    tie_word_embeddings=True,
    logit_scale=0.0625,
    traits=Traits(layer_norms=True, parallel_residual=True, interleaved_rope=True),
)

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(2048, mlp_bias=None),
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
        norm_names=SANDWICH,
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
        norm_names=SANDWICH,
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
        norm_names=SANDWICH,
    ),
    "Olmo3ForCausalLM": Family(
        2048,
        rms_norm_eps=1e-5,
        qk_norm=True,
        whole_qk_norms=True,
        input_norms=False,
        sandwich_norms=True,
        norm_names=SANDWICH,
        sliding="pattern",
        sliding_window=4096,
        window_pattern=4,
        rope_theta=500_000.0,
        local_rope_theta=500_000.0,
    ),
    "GraniteForCausalLM": Family(2048, mlp_bias=None, multipliers=True),
    "SeedOssForCausalLM": Family(
        524288,
        head_dim=128,
        num_kv_heads=8,
        attention_bias=True,
        o_bias_field="attention_out_bias",
        mlp_bias=None,
    ),
    "SmolLM3ForCausalLM": Family(
        32768,
        num_kv_heads=4,
        tie_word_embeddings=True,
        mlp_bias=None,
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
    "GlmForCausalLM": _GLM,
    "Glm4ForCausalLM": replace(
        _GLM,
        sandwich_norms=True,
        norm_names=NormNames(
            attention_out="post_self_attn_layernorm", mlp_out="post_mlp_layernorm"
        ),
    ),
    "CohereForCausalLM": replace(_COHERE, qk_norm_field="use_qk_norm", rope_theta=500_000.0),
    "Cohere2ForCausalLM": replace(
        _COHERE,
        refused_flags=("use_qk_norm",),
        sliding="pattern",
        sliding_window=4096,
        window_pattern=4,
        window_pattern_field="sliding_window_pattern",
        rope_slides="ever",
        has_head_dim=False,
    ),
    "Starcoder2ForCausalLM": Family(
        4096,
        num_kv_heads=2,
        rms_norm_eps=1e-5,
        norm_eps_field="norm_epsilon",
        tie_word_embeddings=True,
        activation="gelu_pytorch_tanh",
        qkv_bias_field="use_bias",
        attention_bias=True,
        o_bias_field="use_bias",
        attention_out_bias=True,
        mlp_bias=None,
        mlp_bias_field="use_bias",
        default_mlp_bias=True,
        sliding="always",
        traits=Traits(
            layer_norms=True,
            norm_biases=True,
            gated_mlp=False,
            up_module="mlp.c_fc",
            down_module="mlp.c_proj",
        ),
    ),
    "PhiForCausalLM": Family(
        2048,
        rms_norm_eps=1e-5,
        norm_eps_field="layer_norm_eps",
        activation="gelu_new",
        activation_names=(("gelu_new", "gelu_pytorch_tanh"),),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        refused_flags=("qk_layernorm",),
        partial_rotary=True,
        partial_rotary_factor=0.5,
        norm_names=NormNames(last="model.final_layernorm"),
        traits=Traits(
            layer_norms=True,
            norm_biases=True,
            parallel_residual=True,
            gated_mlp=False,
            head_bias=True,
            o_module="self_attn.dense",
            up_module="mlp.fc1",
            down_module="mlp.fc2",
        ),
    ),
    "StableLmForCausalLM": Family(
        4096,
        num_kv_heads=32,
        rms_norm_eps=1e-5,
        norm_eps_field="layer_norm_eps",
        qkv_bias_field="use_qkv_bias",
        o_bias=False,
        refused_flags=("qk_layernorm",),
        partial_rotary=True,
        partial_rotary_factor=0.25,
        has_head_dim=False,
        traits=Traits(layer_norms=True, norm_biases=True),
        parallel_residual_field="use_parallel_residual",
    ),
    "NemotronForCausalLM": Family(
        4096,
        rms_norm_eps=1e-5,
        norm_eps_field="norm_eps",
        activation="relu2",
        mlp_bias=None,
        unit_offset_norms=True,
        partial_rotary=True,
        partial_rotary_factor=0.5,
        traits=Traits(layer_norms=True, norm_biases=True, gated_mlp=False),
    ),
    "Jais2ForCausalLM": Family(
        8192,
        rms_norm_eps=1e-5,
        norm_eps_field="layer_norm_eps",
        activation="relu2",
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=None,
        default_mlp_bias=True,
        traits=Traits(layer_norms=True, norm_biases=True, gated_mlp=False),
    ),
    "ArceeForCausalLM": Family(
        4096,
        rms_norm_eps=1e-5,
        activation="relu2",
        mlp_bias=None,
        traits=Traits(gated_mlp=False),
    ),
    "HeliumForCausalLM": Family(
        4096,
        head_dim=128,
        num_kv_heads=20,
        rms_norm_eps=1e-8,
        o_bias=False,
        mlp_bias=None,
        rope_theta=100_000.0,
        traits=Traits(interleaved_rope=True),
    ),
    "Ernie4_5ForCausalLM": Family(
        131072,
        head_dim=128,
        num_kv_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        qkv_bias_field="use_bias",
        o_bias_field="use_bias",
        mlp_bias=None,
        mlp_bias_field="use_bias",
        rope_theta=500_000.0,
        traits=Traits(interleaved_rope=True),
    ),
    "Exaone4ForCausalLM": Family(
        2048,
        num_kv_heads=32,
        rms_norm_eps=1e-5,
        qkv_bias=False,
        o_bias=False,
        qk_norm=True,
        input_norms=False,
        sandwich_norms=True,
        sliding="pattern",
        sliding_window=4096,
        window_pattern=4,
        window_pattern_field="sliding_window_pattern",
        rope_slides="with window",
    ),
    "MinistralForCausalLM": Family(
        131072,
        num_kv_heads=8,
        qkv_bias=False,
        o_bias=False,
        sliding="types",
        sliding_window=4096,
    ),
}
