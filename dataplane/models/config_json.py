"""The decoder's configuration, read from a Hugging Face config.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from dataplane.errors import ModelNotFoundError, UnsupportedModelError
from dataplane.models.config import ModelConfig
from dataplane.models.experts import read_experts
from dataplane.models.families import FAMILIES, Family
from dataplane.models.fields import count, epsilon, flag, positive, soft_cap, unsupported
from dataplane.models.layer_kinds import sliding_windows, without_rope
from dataplane.models.multimodal import TEXT_PARTS, is_tie_in_doubt, text_fields
from dataplane.models.multipliers import read_multipliers
from dataplane.models.quantization.parse import parse_quantization
from dataplane.models.rope import Rope, RopeReader, no_rope
from dataplane.models.traits import Traits

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
PLAIN_ACTIVATIONS = ("gelu_pytorch_tanh", "relu2")
"""Of an MLP without a gate."""
# Far beyond any model's, as `fields.MAX_SIZE` is.
_MAX_HEADS = _MAX_HEAD_DIM = _MAX_LAYERS = 1 << 12


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
    """`fields` as in config.json, `generation` as in generation_config.json.

    Raises: UnsupportedModelError.
    """
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
    if fields.get("use_bidirectional_attention"):
        raise unsupported(
            "use_bidirectional_attention", fields["use_bidirectional_attention"], "absent"
        )
    try:
        return _decoder(fields, family, generation or {})
    except KeyError as error:
        raise unsupported(str(error.args[0]), "(missing)", "a number") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UnsupportedModelError(
            "CONFIG_INVALID", f"config.json: a field has the wrong type: {str(error)[:200]}", {}
        ) from None


def _decoder(
    fields: Mapping[str, Any], family: Family, generation: Mapping[str, Any]
) -> ModelConfig:
    activation = _activation(fields, family)
    hidden_size = count("hidden_size", fields["hidden_size"])
    num_layers = count("num_hidden_layers", fields["num_hidden_layers"], _MAX_LAYERS)
    vocab_size = count("vocab_size", fields["vocab_size"])
    heads = _heads(fields, family, hidden_size)
    positions = _positions(fields, family, heads.dim, num_layers)
    traits = _traits(fields, family)
    scales = _scales(fields, family, hidden_size, heads.dim)
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=count("intermediate_size", fields["intermediate_size"]),
        num_layers=num_layers,
        num_heads=heads.queries,
        num_kv_heads=heads.keys,
        head_dim=heads.dim,
        rms_norm_eps=scales.norm_eps,
        max_position_embeddings=positions.max_context,
        tie_word_embeddings=flag(fields, "tie_word_embeddings", default=family.tie_word_embeddings),
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
        embedding_scale=scales.embedding,
        rounds_embedding_scale=family.scaled_embeddings,
        attention_scale=scales.attention,
        logit_divisor=scales.logit_divisor,
        attention_soft_cap=soft_cap(
            fields,
            "attn_logit_softcapping",
            family.attention_soft_cap,
            known=family.attention_soft_cap_known,
        ),
        logit_soft_cap=soft_cap(
            fields,
            "final_logit_softcapping",
            family.logit_soft_cap,
            known=family.logit_soft_cap_known,
        ),
        sliding_windows=positions.windows,
        ropes=positions.ropes,
        layer_ropes=positions.layer_ropes,
        eos_token_ids=_eos(fields, generation, vocab_size),
        dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32"),
        quantization=parse_quantization(fields),
        experts=read_experts(fields, family.experts, num_layers),
        traits=traits,
        norm_names=family.norm_names,
    )


class _Heads(NamedTuple):
    queries: int
    keys: int
    dim: int


def _heads(fields: Mapping[str, Any], family: Family, hidden_size: int) -> _Heads:
    queries = count("num_attention_heads", fields["num_attention_heads"], _MAX_HEADS)
    keys = count(
        "num_key_value_heads",
        fields.get("num_key_value_heads", family.num_kv_heads) or queries,
        _MAX_HEADS,
    )
    if queries % keys:
        raise unsupported("num_key_value_heads", keys, f"a divisor of {queries}")
    dim = count(
        "head_dim", fields.get("head_dim", family.head_dim) or hidden_size // queries, _MAX_HEAD_DIM
    )
    if not family.has_head_dim and dim != hidden_size // queries:
        raise unsupported("head_dim", dim, f"{hidden_size // queries}, or absent")
    return _Heads(queries, keys, dim)


class _Positions(NamedTuple):
    windows: tuple[int | None, ...]  # per layer
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...]  # per layer, an index into `ropes`
    max_context: int


def _positions(
    fields: Mapping[str, Any], family: Family, head_dim: int, num_layers: int
) -> _Positions:
    windows = sliding_windows(fields, family, num_layers)
    full, local = RopeReader(fields, family, head_dim).read()
    other = [window is not None for window in windows]
    if family.rope_interval or family.rope_slides:
        other = without_rope(fields, family, windows)
        local = no_rope(full.rotary_dim) if any(other) else full
    ropes = (full,) if local == full else (full, local)
    max_context = count(
        "max_position_embeddings",
        fields.get("max_position_embeddings", family.max_position_embeddings),
        sys.maxsize,
    )
    if full.kind == "longrope":
        max_context = min(max_context, full.original_context)
    layer_ropes = tuple(int(len(ropes) > 1 and each) for each in other)
    return _Positions(windows, ropes, layer_ropes, max_context)


class _Scales(NamedTuple):
    norm_eps: float
    embedding: float
    attention: float
    logit_divisor: float


def _scales(fields: Mapping[str, Any], family: Family, hidden_size: int, head_dim: int) -> _Scales:
    eps = epsilon(family.norm_eps_field, fields.get(family.norm_eps_field, family.rms_norm_eps))
    multipliers = read_multipliers(fields, family)
    logit_scale = 1.0
    if family.logit_scale is not None:
        logit_scale = positive("logit_scale", fields.get("logit_scale", family.logit_scale))
    query_scalar = head_dim
    if family.query_pre_attn_scalar is not None:
        query_scalar = fields.get("query_pre_attn_scalar", family.query_pre_attn_scalar)
    embedding = multipliers.embedding / multipliers.residual
    if family.scaled_embeddings:
        embedding = hidden_size**0.5
    return _Scales(
        norm_eps=eps / multipliers.residual**2,
        embedding=embedding,
        attention=multipliers.attention or positive("query_pre_attn_scalar", query_scalar) ** -0.5,
        logit_divisor=multipliers.logits / logit_scale,
    )


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
        if flag(fields, name):
            raise unsupported(name, True, "absent or false")
    if family.qk_norm_field:
        traits = replace(traits, head_layer_norms=flag(fields, family.qk_norm_field))
    if family.parallel_residual_field:
        parallel = flag(fields, family.parallel_residual_field)
        traits = replace(traits, parallel_residual=parallel)
    return traits


def _bias(fields: Mapping[str, Any], name: str, default: bool, known: bool | None) -> bool:
    """known: None: the field decides."""
    return flag(fields, name, default=default) if known is None else known


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
