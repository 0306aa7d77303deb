"""Random-weight models and adapters of known shapes, in the formats that users have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.tokenizer import write_tokenizer

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL_LINEAR = (*ATTENTION, *MLP)
MAX_TOKENS = 2048


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's architecture, or of Mixtral's where it has experts."""

    hidden_size: int
    intermediate_size: int  # of each expert, where there are any
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    num_experts: int = 0
    top_k: int = 0  # experts of a token

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def base_bytes(self) -> int:
        """As `step_bytes`, of a step of one token; of any step where there are no experts."""
        return self.step_bytes(1)

    def step_bytes(self, num_tokens: int) -> int:
        """Of the weights that a decode step reads, bfloat16: all but the embedding, of which it
        reads a row for each token, and the experts that no token has chosen."""
        layer: float = sum(i * o for i, o in self.projections().values())
        if self.num_experts:
            expert = 3 * self.hidden_size * self.intermediate_size
            layer += self.num_experts * self.hidden_size + self.touched(num_tokens) * expert
        return int(2 * (self.num_layers * layer + self.vocab_size * self.hidden_size))

    def touched(self, num_tokens: int) -> float:
        """Experts of a layer that so many tokens choose, if all are chosen equally often."""
        left_out = 1 - self.top_k / self.num_experts
        return self.num_experts * (1 - left_out**num_tokens)

    def adapter_bytes(self, rank: int, targets: Iterable[str] = ALL_LINEAR) -> int:
        """Of an adapter's matrices, bfloat16."""
        chosen = set(targets)
        shapes = self.projections().items()
        width = sum(i + o for name, (i, o) in shapes if name.split(".")[1] in chosen)
        return 2 * self.num_layers * rank * width

    def projections(self) -> dict[str, tuple[int, int]]:
        """Module below a layer -> (in_features, out_features), without experts."""
        hidden, inter = self.hidden_size, self.intermediate_size
        kv = self.num_kv_heads * self.head_dim
        attention = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden, kv),
            "self_attn.v_proj": (hidden, kv),
            "self_attn.o_proj": (hidden, hidden),
        }
        if self.num_experts:
            return attention
        return attention | {
            "mlp.gate_proj": (hidden, inter),
            "mlp.up_proj": (hidden, inter),
            "mlp.down_proj": (inter, hidden),
        }


SHAPES = {
    "tiny": Shape(64, 176, 4, 4, 2, 512),
    "small": Shape(768, 2048, 12, 12, 4, 8192),
    "small-moe": Shape(768, 512, 12, 12, 4, 8192, num_experts=16, top_k=2),
    "tinyllama": Shape(2048, 5632, 22, 32, 4, 32000),
}


def model_fields(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """What config.json says of the shape."""
    kind: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if shape.num_experts:
        kind = {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": shape.num_experts,
            "num_experts_per_tok": shape.top_k,
        }
    return {
        **kind,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": str(dtype).removeprefix("torch."),
    }


def write_model(directory: Path, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes a model directory with weights that keep activations bounded, and a tokenizer."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, columns: int) -> torch.Tensor:
        weights = torch.randn(rows, columns, generator=generator) * columns**-0.5
        return weights.to(dtype)

    ones = torch.ones(shape.hidden_size, dtype=dtype)
    tensors = {
        "model.embed_tokens.weight": normal(shape.vocab_size, shape.hidden_size),
        "lm_head.weight": normal(shape.vocab_size, shape.hidden_size),
        "model.norm.weight": ones.clone(),
    }
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = ones.clone()
        for module, (in_features, out_features) in shape.projections().items():
            tensors[f"{prefix}{module}.weight"] = normal(out_features, in_features)
        block = f"{prefix}block_sparse_moe"
        hidden, inter = shape.hidden_size, shape.intermediate_size
        if shape.num_experts:
            tensors[f"{block}.gate.weight"] = normal(shape.num_experts, hidden)
        for expert in range(shape.num_experts):
            sizes = {"w1": (inter, hidden), "w2": (hidden, inter), "w3": (inter, hidden)}
            for name, (rows, columns) in sizes.items():
                tensors[f"{block}.experts.{expert}.{name}.weight"] = normal(rows, columns)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(model_fields(shape, dtype), indent=1))
    write_tokenizer(directory, shape.vocab_size, MAX_TOKENS)


def adapter_fields(
    rank: int, targets: Sequence[str] = ALL_LINEAR, base_model: str = ""
) -> dict[str, Any]:
    """What adapter_config.json says. base_model: what the adapter says that it was trained on."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(targets),
        "base_model_name_or_path": base_model,
    }


def adapter_shapes(
    shape: Shape, rank: int, targets: Sequence[str] = ALL_LINEAR
) -> dict[str, tuple[int, int]]:
    """Tensor name -> shape, in the order of the file."""
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(shape.num_layers):
        for module, (in_features, out_features) in shape.projections().items():
            if module.split(".")[1] in targets:
                prefix = f"base_model.model.model.layers.{layer}.{module}"
                shapes[f"{prefix}.lora_A.weight"] = (rank, in_features)
                shapes[f"{prefix}.lora_B.weight"] = (out_features, rank)
    return shapes


def write_adapter(
    directory: Path,
    shape: Shape,
    *,
    rank: int,
    seed: int,
    targets: Sequence[str] = ALL_LINEAR,
    base_model: str = "",
    dtype: torch.dtype = torch.bfloat16,
    scale: float = 0.02,
) -> None:
    """Writes a PEFT adapter of the shape as peft itself lays it out.

    targets: module names below the layers, as in PEFT's target_modules.
    base_model: what the adapter says that it was trained on. scale: of the random values.
    """
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * scale).to(dtype)

    tensors = {name: normal(*size) for name, size in adapter_shapes(shape, rank, targets).items()}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = adapter_fields(rank, targets, base_model)
    (directory / "adapter_config.json").write_text(json.dumps(fields, indent=1))
