"""The decoder's configuration, read from a Hugging Face config.json."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from dataplane.errors import ModelNotFoundError, UnsupportedModelError
from dataplane.models.experts import Experts, read_experts
from dataplane.models.families import FAMILIES, Family
from dataplane.models.layer_kinds import sliding_windows, without_rope
from dataplane.models.multimodal import TEXT_PARTS, is_tie_in_doubt, text_fields
from dataplane.models.multipliers import read_multipliers
from dataplane.models.quantization.description import Quantization
from dataplane.models.quantization.parse import parse_quantization
from dataplane.models.rope import Rope, RopeReader, no_rope, unsupported
from dataplane.models.traits import LLAMA_NORMS, PLAIN, NormNames, Traits

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
PLAIN_ACTIVATIONS = ("gelu_pytorch_tanh", "relu2")
"""Of an MLP without a gate."""
# Far beyond any model's: what is made of such sizes before a checkpoint contradicts them is small.
_MAX_SIZE = 1 << 24
_MAX_HEADS = _MAX_HEAD_DIM = _MAX_LAYERS = 1 << 12


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape. All counts are of elements, heads or layers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float  # or of LayerNorms
    max_position_embeddings: int  # the longest context that is served exactly
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm of each query and key head (Qwen3, Gemma 3), or of all (OLMo)
    activation: str  # "silu", "gelu_pytorch_tanh" or "relu2"
    fused_projections: bool  # qkv_proj and gate_up_proj are modules of their own (Phi-3)
    unit_offset_norms: bool  # norms multiply by 1 + weight, in float32 (Gemma)
    sandwich_norms: bool  # attention's and the MLP's outputs are normed too (Gemma)
    embedding_scale: float  # 1.0 but for Gemma
    attention_scale: float  # of q · k
    attention_soft_cap: float | None  # cap · tanh(score / cap)
    logit_soft_cap: float | None
    sliding_windows: tuple[int | None, ...]  # per layer
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...]  # per layer, an index into `ropes`
    eos_token_ids: tuple[int, ...]
    dtype: str  # the checkpoint's own: "bfloat16", "float16" or "float32"
    # Of the checkpoint; None: it has plain weights.
    quantization: Quantization | None = field(default=None, repr=False)
    logit_divisor: float = field(default=1.0, repr=False)  # 1.0 but for Granite
    rounds_embedding_scale: bool = field(default=True, repr=False)  # to the model's dtype
    # Of attention and the MLP; without, they have sandwich_norms, which are of outputs (OLMo 2, 3).
    input_norms: bool = field(default=True, repr=False)
    whole_qk_norms: bool = field(default=False, repr=False)  # qk_norm is of all heads together
    # Of a multimodal checkpoint.
    is_text_part: bool = field(default=False, repr=False)
    is_tie_in_doubt: bool = field(default=False, repr=False)  # a head of its own unties it
    experts: Experts | None = field(default=None, repr=False)  # None: all layers are dense
    traits: Traits = field(default=PLAIN, repr=False)
    norm_names: NormNames = field(default=LLAMA_NORMS, repr=False)

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer has a mixture of experts."""
        return self.experts is not None and self.experts.sparse_layers[layer]

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


def load_config(model_dir: Path) -> ModelConfig:
    """Reads config.json, and generation_config.json for the end-of-sequence tokens.

    Raises: ModelNotFoundError, UnsupportedModelError.
    """
    fields = _read(model_dir, "config.json")
    if fields is None:
        raise ModelNotFoundError(
            "MODEL_NOT_FOUND",
            f"{model_dir} has no config.json; give a Hugging Face model directory",
            {"model": str(model_dir)},
        )
    return parse_config(fields, _read(model_dir, "generation_config.json"))


def _read(model_dir: Path, name: str) -> Mapping[str, Any] | None:
    """None: there is no such file. Raises: UnsupportedModelError."""
    try:
        fields = json.loads((model_dir / name).read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(
            "CONFIG_INVALID", f"{model_dir / name} is not JSON: {error}", {"model": str(model_dir)}
        ) from None
    if not isinstance(fields, dict):
        raise UnsupportedModelError(
            "CONFIG_INVALID", f"{model_dir / name} is not a JSON object", {"model": str(model_dir)}
        )
    return cast("dict[str, Any]", fields)


def parse_config(
    fields: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """`fields` as in config.json, `generation` as in generation_config.json."""
    architectures = fields.get("architectures") or ["(none)"]
    name = str(architectures[0] if isinstance(architectures, list) else architectures)
    if (part := TEXT_PARTS.get(name)) is not None:
        alone = parse_config(text_fields(part, fields), generation)
        in_doubt = is_tie_in_doubt(part, fields)
        tied = alone.tie_word_embeddings or in_doubt
        return replace(alone, is_text_part=True, tie_word_embeddings=tied, is_tie_in_doubt=in_doubt)
    family = FAMILIES.get(name)
    if family is None:
        known = ", ".join(sorted([*FAMILIES, *TEXT_PARTS]))
        raise unsupported("architectures", name, f"one of {known}")
    activation = _activation(fields, family)
    if fields.get("use_bidirectional_attention"):
        raise unsupported(
            "use_bidirectional_attention", fields["use_bidirectional_attention"], "absent"
        )
    try:
        num_heads = _count("num_attention_heads", fields["num_attention_heads"], _MAX_HEADS)
        hidden_size = _count("hidden_size", fields["hidden_size"])
        num_layers = _count("num_hidden_layers", fields["num_hidden_layers"], _MAX_LAYERS)
        vocab_size = _count("vocab_size", fields["vocab_size"])
        num_kv_heads = _count(
            "num_key_value_heads",
            fields.get("num_key_value_heads", family.num_kv_heads) or num_heads,
            _MAX_HEADS,
        )
        if num_heads % num_kv_heads:
            raise unsupported("num_key_value_heads", num_kv_heads, f"a divisor of {num_heads}")
        head_dim = _count(
            "head_dim",
            fields.get("head_dim", family.head_dim) or hidden_size // num_heads,
            _MAX_HEAD_DIM,
        )
        if not family.has_head_dim and head_dim != hidden_size // num_heads:
            raise unsupported("head_dim", head_dim, f"{hidden_size // num_heads}, or absent")
        windows = sliding_windows(fields, family, num_layers)
        full, local = RopeReader(fields, family, head_dim).read()
        other = [window is not None for window in windows]
        if family.rope_interval or family.rope_slides:
            other = without_rope(fields, family, windows)
            local = no_rope(full.rotary_dim) if any(other) else full
        ropes = (full,) if local == full else (full, local)
        max_context = _count(
            "max_position_embeddings",
            fields.get("max_position_embeddings", family.max_position_embeddings),
            sys.maxsize,
        )
        if full.kind == "longrope":
            max_context = min(max_context, full.original_context)
        eps_field = family.norm_eps_field
        eps = _epsilon(eps_field, fields.get(eps_field, family.rms_norm_eps))
        multipliers = read_multipliers(fields, family)
        experts = read_experts(fields, family.experts, num_layers)
        traits = _traits(fields, family)
        logit_scale = 1.0
        if family.logit_scale is not None:
            logit_scale = _positive("logit_scale", fields.get("logit_scale", family.logit_scale))
        query_scalar = head_dim
        if family.query_pre_attn_scalar is not None:
            query_scalar = fields.get("query_pre_attn_scalar", family.query_pre_attn_scalar)
        return ModelConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=_count("intermediate_size", fields["intermediate_size"]),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=eps / multipliers.residual**2,
            max_position_embeddings=max_context,
            tie_word_embeddings=_flag(
                fields, "tie_word_embeddings", default=family.tie_word_embeddings
            ),
            qkv_bias=_bias(fields, family.qkv_bias_field, family.attention_bias, family.qkv_bias),
            o_bias=_bias(fields, family.o_bias_field, family.attention_out_bias, family.o_bias),
            mlp_bias=_bias(fields, family.mlp_bias_field, family.default_mlp_bias, family.mlp_bias),
            qk_norm=family.qk_norm or traits.head_layer_norms,
            activation=activation,
            fused_projections=family.fused_projections,
            unit_offset_norms=family.unit_offset_norms,
            sandwich_norms=family.sandwich_norms,
            input_norms=family.input_norms,
            whole_qk_norms=family.whole_qk_norms,
            embedding_scale=hidden_size**0.5
            if family.scaled_embeddings
            else multipliers.embedding / multipliers.residual,
            rounds_embedding_scale=family.scaled_embeddings,
            attention_scale=multipliers.attention
            or _positive("query_pre_attn_scalar", query_scalar) ** -0.5,
            logit_divisor=multipliers.logits / logit_scale,
            attention_soft_cap=_soft_cap(
                fields,
                "attn_logit_softcapping",
                family.attention_soft_cap,
                known=family.attention_soft_cap_known,
            ),
            logit_soft_cap=_soft_cap(
                fields,
                "final_logit_softcapping",
                family.logit_soft_cap,
                known=family.logit_soft_cap_known,
            ),
            sliding_windows=windows,
            ropes=ropes,
            layer_ropes=tuple(int(len(ropes) > 1 and each) for each in other),
            eos_token_ids=_eos(fields, generation or {}, vocab_size),
            dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32"),
            quantization=parse_quantization(fields),
            experts=experts,
            traits=traits,
            norm_names=family.norm_names,
        )
    except KeyError as error:
        raise unsupported(str(error.args[0]), "(missing)", "a number") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UnsupportedModelError(
            "CONFIG_INVALID", f"config.json: a field has the wrong type: {str(error)[:200]}", {}
        ) from None


def _activation(fields: Mapping[str, Any], family: Family) -> str:
    found = family.activation
    for field_name in filter(None, (family.activation_field, family.older_activation_field)):
        value = fields.get(field_name) or found
        for name, means in family.activation_names:
            value = means if value == name else value
        known = ACTIVATIONS if family.traits.gated_mlp else PLAIN_ACTIVATIONS
        if value not in known or (field_name != family.activation_field and value != found):
            raise unsupported(field_name, value, ", ".join(known))
        found = value
    return found


def _traits(fields: Mapping[str, Any], family: Family) -> Traits:
    traits = family.traits
    for name in family.refused_flags:
        if _flag(fields, name):
            raise unsupported(name, True, "absent or false")
    if family.qk_norm_field:
        traits = replace(traits, head_layer_norms=_flag(fields, family.qk_norm_field))
    if family.parallel_residual_field:
        parallel = _flag(fields, family.parallel_residual_field)
        traits = replace(traits, parallel_residual=parallel)
    return traits


def _bias(fields: Mapping[str, Any], name: str, default: bool, known: bool | None) -> bool:
    """known: None: the field decides."""
    return _flag(fields, name, default=default) if known is None else known


def _count(name: str, value: object, most: int = _MAX_SIZE) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise unsupported(name, value, f"a whole number from 1 to {most}")
    return value


def _positive(name: str, value: float | None) -> float:
    if value is None or not 0 < float(value) < math.inf:
        raise unsupported(name, value, "a number above 0")
    return float(value)


def _epsilon(name: str, value: float) -> float:
    if not 0 <= float(value) < math.inf:
        raise unsupported(name, value, "a number, 0 or more")
    return float(value)


def _flag(fields: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = fields.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise unsupported(name, value, "true or false")
    return bool(value)


def _soft_cap(
    fields: Mapping[str, Any], name: str, default: float | None, *, known: bool
) -> float | None:
    cap = fields.get(name, default)
    if cap is None:
        return None
    if not known:
        raise unsupported(name, cap, "absent")
    return _positive(name, cap)


def _eos(
    fields: Mapping[str, Any], generation: Mapping[str, Any], vocab_size: int
) -> tuple[int, ...]:
    """Ids beyond the vocabulary are left out: no token is one, and sampling cannot ban them."""
    eos = generation.get("eos_token_id")
    if eos is None:
        eos = fields.get("eos_token_id")
    if eos is None:
        return ()
    ids = [int(token) for token in (eos if isinstance(eos, list) else [eos])]
    return tuple(token for token in ids if 0 <= token < vocab_size)
