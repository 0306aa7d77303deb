"""The decoder's configuration, read from a Hugging Face config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataplane.errors import ModelNotFoundError, UnsupportedModelError


@dataclass(frozen=True)
class ModelConfig:
    """The Llama family's shape. All counts are of elements, heads or layers."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm of each query and key head (Qwen3)
    sliding_windows: tuple[int | None, ...]  # per layer
    eos_token_ids: tuple[int, ...]
    dtype: str  # the checkpoint's own: "bfloat16", "float16" or "float32"

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class _Family:
    """What a config.json of this architecture means where it is silent."""

    max_position_embeddings: int
    head_dim: int | None = None
    qkv_bias: bool | None = None  # None: the field `attention_bias` decides
    o_bias: bool | None = None
    mlp_bias: bool = False  # whether the field `mlp_bias` is known
    qk_norm: bool = False
    sliding_window: int | None = None
    sliding_needs_flag: bool = False  # `use_sliding_window` turns it on


_FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family(2048, mlp_bias=True),
    "MistralForCausalLM": _Family(131072, qkv_bias=False, o_bias=False, sliding_window=4096),
    "Qwen2ForCausalLM": _Family(
        32768, qkv_bias=True, o_bias=False, sliding_window=4096, sliding_needs_flag=True
    ),
    "Qwen3ForCausalLM": _Family(
        32768, head_dim=128, qk_norm=True, sliding_window=4096, sliding_needs_flag=True
    ),
}


def load_config(model_dir: Path) -> ModelConfig:
    """Reads config.json, and generation_config.json for the end-of-sequence tokens.

    Raises: ModelNotFoundError, UnsupportedModelError.
    """
    path = model_dir / "config.json"
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelNotFoundError(
            "MODEL_NOT_FOUND",
            f"{model_dir} has no config.json; give a Hugging Face model directory",
            {"model": str(model_dir)},
        ) from None
    except ValueError as error:
        raise UnsupportedModelError(
            "CONFIG_INVALID", f"{path} is not JSON: {error}", {"model": str(model_dir)}
        ) from None
    generation = model_dir / "generation_config.json"
    extra = json.loads(generation.read_bytes()) if generation.is_file() else {}
    return parse_config(fields, extra)


def parse_config(
    fields: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """`fields` as in config.json, `generation` as in generation_config.json."""
    architectures = fields.get("architectures") or ["(none)"]
    name = str(architectures[0])
    family = _FAMILIES.get(name)
    if family is None:
        raise _unsupported("architectures", name, f"one of {', '.join(sorted(_FAMILIES))}")
    if fields.get("hidden_act", "silu") != "silu":
        raise _unsupported("hidden_act", fields["hidden_act"], "silu")
    if fields.get("quantization_config"):
        raise _unsupported("quantization_config", "present", "an unquantized checkpoint")
    try:
        num_heads = int(fields["num_attention_heads"])
        hidden_size = int(fields["hidden_size"])
        num_layers = int(fields["num_hidden_layers"])
        head_dim = fields.get("head_dim") or family.head_dim or hidden_size // num_heads
        bias = bool(fields.get("attention_bias", False))
        return ModelConfig(
            architecture=name,
            vocab_size=int(fields["vocab_size"]),
            hidden_size=hidden_size,
            intermediate_size=int(fields["intermediate_size"]),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=int(fields.get("num_key_value_heads") or num_heads),
            head_dim=int(head_dim),
            rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
            rope_theta=_rope_theta(fields),
            max_position_embeddings=int(
                fields.get("max_position_embeddings", family.max_position_embeddings)
            ),
            tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
            qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
            o_bias=bias if family.o_bias is None else family.o_bias,
            mlp_bias=family.mlp_bias and bool(fields.get("mlp_bias", False)),
            qk_norm=family.qk_norm,
            sliding_windows=_sliding_windows(fields, family, num_layers),
            eos_token_ids=_eos(fields, generation or {}),
            dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32"),
        )
    except KeyError as error:
        raise _unsupported(str(error.args[0]), "(missing)", "a number") from None


def _rope_theta(fields: Mapping[str, Any]) -> float:
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default" or float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _unsupported("rope_parameters.rope_type", kind, "default")
    return float(rope.get("rope_theta") or fields.get("rope_theta") or 10000.0)


def _sliding_windows(
    fields: Mapping[str, Any], family: _Family, num_layers: int
) -> tuple[int | None, ...]:
    window = fields.get("sliding_window", family.sliding_window)
    if window is None or family.sliding_window is None:
        return (None,) * num_layers
    if family.sliding_needs_flag:
        if not fields.get("use_sliding_window", False):
            return (None,) * num_layers
        full = int(fields.get("max_window_layers", 28))
        types = fields.get("layer_types") or [
            "full_attention" if layer < full else "sliding_attention" for layer in range(num_layers)
        ]
        return tuple(int(window) if kind == "sliding_attention" else None for kind in types)
    return (int(window),) * num_layers


def _eos(fields: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    eos = generation.get("eos_token_id")
    if eos is None:
        eos = fields.get("eos_token_id")
    if eos is None:
        return ()
    return tuple(int(token) for token in (eos if isinstance(eos, list) else [eos]))


def _unsupported(field: str, value: object, wanted: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "MODEL_UNSUPPORTED",
        f"config.json: {field} is {str(value)[:200]}; supported: {wanted}",
        {"field": field, "value": str(value)[:200]},
    )
