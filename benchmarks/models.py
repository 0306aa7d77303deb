"""Random-weight models and adapters of known shapes, in the formats that users have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shape:
    """A Llama-architecture decoder."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def projections(self) -> dict[str, tuple[int, int]]:
        """Module below a layer -> (in_features, out_features)."""
        hidden, inter = self.hidden_size, self.intermediate_size
        kv = self.num_kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden, kv),
            "self_attn.v_proj": (hidden, kv),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (hidden, inter),
            "mlp.up_proj": (hidden, inter),
            "mlp.down_proj": (inter, hidden),
        }


SHAPES = {
    "tiny": Shape(64, 176, 4, 4, 2, 512),
    "small": Shape(768, 2048, 12, 12, 4, 8192),
    "tinyllama": Shape(2048, 5632, 22, 32, 4, 32000),
}


def write_model(directory: Path, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes config.json and model.safetensors with weights that keep activations bounded."""
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
    save_file(tensors, directory / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "dtype": str(dtype).removeprefix("torch."),
    }
    (directory / "config.json").write_text(json.dumps(config))


def write_adapter(directory: Path, shape: Shape, *, rank: int, seed: int) -> None:
    """Writes an all-linear PEFT adapter of the shape, bfloat16."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * 0.02).to(torch.bfloat16)

    tensors: dict[str, torch.Tensor] = {}
    for layer in range(shape.num_layers):
        for module, (in_features, out_features) in shape.projections().items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = normal(rank, in_features)
            tensors[f"{prefix}.lora_B.weight"] = normal(out_features, rank)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(m.split(".")[1] for m in shape.projections()),
        "base_model_name_or_path": "",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
