"""The decoder's configuration, read from a Hugging Face config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dataplane.errors import ModelNotFoundError, UnsupportedModelError
from dataplane.models.families import FAMILIES, Family
from dataplane.models.quantization.description import Quantization
from dataplane.models.quantization.parse import parse_quantization
from dataplane.models.rope import Rope, RopeReader, unsupported

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


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
    rms_norm_eps: float
    max_position_embeddings: int  # the longest context that is served exactly
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm of each query and key head (Qwen3, Gemma 3)
    activation: str  # of the gate: "silu" or "gelu_pytorch_tanh"
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

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

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
    family = FAMILIES.get(name)
    if family is None:
        raise unsupported("architectures", name, f"one of {', '.join(sorted(FAMILIES))}")
    activation = fields.get(family.activation_field) or family.activation
    if activation not in ACTIVATIONS:
        raise unsupported(family.activation_field, activation, ", ".join(ACTIVATIONS))
    if fields.get("use_bidirectional_attention"):
        raise unsupported(
            "use_bidirectional_attention", fields["use_bidirectional_attention"], "absent"
        )
    try:
        num_heads = _count("num_attention_heads", fields["num_attention_heads"])
        hidden_size = _count("hidden_size", fields["hidden_size"])
        num_layers = _count("num_hidden_layers", fields["num_hidden_layers"])
        vocab_size = _count("vocab_size", fields["vocab_size"])
        num_kv_heads = _count(
            "num_key_value_heads",
            fields.get("num_key_value_heads", family.num_kv_heads) or num_heads,
        )
        if num_heads % num_kv_heads:
            raise unsupported("num_key_value_heads", num_kv_heads, f"a divisor of {num_heads}")
        head_dim = _count(
            "head_dim", fields.get("head_dim") or family.head_dim or hidden_size // num_heads
        )
        bias = _flag(fields, "attention_bias")
        windows = _sliding_windows(fields, family, num_layers)
        full, local = RopeReader(fields, family, head_dim).read()
        ropes = (full,) if local == full else (full, local)
        max_context = _count(
            "max_position_embeddings",
            fields.get("max_position_embeddings", family.max_position_embeddings),
        )
        if full.kind == "longrope":
            max_context = min(max_context, full.original_context)
        query_scalar = fields.get("query_pre_attn_scalar", family.query_pre_attn_scalar)
        return ModelConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=_count("intermediate_size", fields["intermediate_size"]),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=_epsilon(fields.get("rms_norm_eps", family.rms_norm_eps)),
            max_position_embeddings=max_context,
            tie_word_embeddings=_flag(
                fields, "tie_word_embeddings", default=family.tie_word_embeddings
            ),
            qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
            o_bias=bias if family.o_bias is None else family.o_bias,
            mlp_bias=family.mlp_bias and _flag(fields, "mlp_bias"),
            qk_norm=family.qk_norm,
            activation=activation,
            fused_projections=family.fused_projections,
            unit_offset_norms=family.unit_offset_norms,
            sandwich_norms=family.sandwich_norms,
            embedding_scale=hidden_size**0.5 if family.scaled_embeddings else 1.0,
            attention_scale=float(
                query_scalar if family.query_pre_attn_scalar is not None else head_dim
            )
            ** -0.5,
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
                known=family.scaled_embeddings,
            ),
            sliding_windows=windows,
            ropes=ropes,
            layer_ropes=tuple(0 if window is None or len(ropes) == 1 else 1 for window in windows),
            eos_token_ids=_eos(fields, generation or {}, vocab_size),
            dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32"),
            quantization=parse_quantization(fields),
        )
    except KeyError as error:
        raise unsupported(str(error.args[0]), "(missing)", "a number") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UnsupportedModelError(
            "CONFIG_INVALID", f"config.json: a field has the wrong type: {str(error)[:200]}", {}
        ) from None


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise unsupported(name, value, "a whole number above 0")
    return value


def _epsilon(value: float) -> float:
    if not 0 <= float(value) < math.inf:
        raise unsupported("rms_norm_eps", value, "a number, 0 or more")
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
    if not known or not float(cap) > 0:
        raise unsupported(name, cap, "a number above 0" if known else "absent")
    return float(cap)


def _sliding_windows(
    fields: Mapping[str, Any], family: Family, num_layers: int
) -> tuple[int | None, ...]:
    window = fields.get("sliding_window", family.sliding_window)
    slides = [False] * num_layers
    match family.sliding:
        case "always":
            slides = [True] * num_layers
        case "flag" if fields.get("use_sliding_window", False):
            full = int(fields.get("max_window_layers", 28))
            slides = _sliding_layers(fields, [layer >= full for layer in range(num_layers)])
        case "pattern":
            every = int(fields.get(family.window_pattern_field) or family.window_pattern)
            slides = _sliding_layers(fields, [bool((n + 1) % every) for n in range(num_layers)])
    if window is None and family.sliding == "pattern" and any(slides):
        raise unsupported("sliding_window", window, "a number, as some layers slide")
    if window is None or not any(slides):
        return (None,) * num_layers
    if int(window) < 1:
        raise unsupported("sliding_window", window, "1 or more")
    return tuple(int(window) if slide else None for slide in slides)


def _sliding_layers(fields: Mapping[str, Any], default: list[bool]) -> list[bool]:
    types = fields.get("layer_types")
    if types is None:
        return default
    if len(types) != len(default):
        raise unsupported("layer_types", types, f"one entry for each of {len(default)} layers")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise unsupported("layer_types", kind, "full_attention or sliding_attention")
    return [kind == "sliding_attention" for kind in types]


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
