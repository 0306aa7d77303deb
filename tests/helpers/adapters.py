"""Small PEFT adapters as directories, made without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from storage.base_model import BaseModelSpec

TINY_BASE = BaseModelSpec(
    name="tiny/llama",
    num_layers=2,
    layer_modules={
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (16, 8),
        "self_attn.v_proj": (16, 8),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (16, 32),
        "mlp.up_proj": (16, 32),
        "mlp.down_proj": (32, 16),
    },
    outer_modules={"lm_head": (16, 64)},
)


def make_adapter_dir(
    path: Path,
    *,
    base: BaseModelSpec = TINY_BASE,
    rank: int = 4,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    lora_alpha: int = 8,
    base_model_name: str | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> Path:
    """Writes an adapter of `base` as PEFT saves it and returns `path`.

    targets: last parts of layer modules' names, or "lm_head" without copies of the base.
    base_model_name: what the config says; default is the base's name. config: fields to add or
    override. The same arguments write the same content.
    """
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}

    def add(module: str, shape: tuple[int, int]) -> None:
        prefix = f"base_model.model.{module}"
        a = random.standard_normal((rank, shape[0])) * 0.1
        b = random.standard_normal((shape[1], rank)) * 0.1
        tensors[f"{prefix}.lora_A.weight"] = a.astype(dtype)
        tensors[f"{prefix}.lora_B.weight"] = b.astype(dtype)

    for layer in range(base.num_layers):
        for module, shape in base.layer_modules.items():
            if module.rpartition(".")[2] in targets:
                add(f"model.layers.{layer}.{module}", shape)
    for module, shape in base.outer_modules.items():
        if module in targets:
            add(module, shape)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name if base_model_name is None else base_model_name,
        "r": rank,
        "lora_alpha": lora_alpha,
        "target_modules": list(targets),
        "bias": "none",
        "inference_mode": True,
    }
    (path / "adapter_config.json").write_text(json.dumps({**fields, **(config or {})}))
    return path
