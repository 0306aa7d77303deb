"""Fields of config.json that say no more than they must."""

from __future__ import annotations

from typing import Any

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
