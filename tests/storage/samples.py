"""Adapters written by hand, byte by byte, so that tests can damage any part of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from storage.base_model import BaseModelSpec
from storage.files import AdapterFiles

SPEC = BaseModelSpec(
    name="org/tiny",
    num_layers=2,
    layer_modules={
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (16, 8),
        "self_attn.v_proj": (16, 8),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (16, 24),
        "mlp.up_proj": (16, 24),
        "mlp.down_proj": (24, 16),
    },
    outer_modules={"lm_head": (16, 32)},
)
ITEM = {"F32": 4, "F16": 2, "BF16": 2}
Tensor = tuple[str, list[int], bytes]  # dtype, shape, bytes


def tensor(shape: Sequence[int], dtype: str = "F32", *, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(tuple(shape)).astype("<f4")
    if dtype == "F32":
        return dtype, list(shape), values.tobytes()
    if dtype == "F16":
        return dtype, list(shape), values.astype("<f2").tobytes()
    return dtype, list(shape), (values.view("<u4") >> 16).astype("<u2").tobytes()


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        end = len(body) + len(data)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), end]}
        body += data
    return with_header(json.dumps(header).encode(), body)


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def key(layer: int, module: str, matrix: str) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.lora_{matrix}.weight"


def lora_tensors(
    modules: Sequence[str] = ("self_attn.q_proj",),
    *,
    rank: int = 4,
    layers: Sequence[int] = (0, 1),
    dtype: str = "F32",
    seed: int = 0,
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        for module in modules:
            num_in, num_out = SPEC.layer_modules[module]
            seed += 1
            tensors[key(layer, module, "A")] = tensor([rank, num_in], dtype, seed=seed)
            tensors[key(layer, module, "B")] = tensor([num_out, rank], dtype, seed=-seed % 997)
    return tensors


def head_tensors(rank: int = 4) -> dict[str, Tensor]:
    return {
        "base_model.model.lm_head.lora_A.weight": tensor([rank, 16], seed=70),
        "base_model.model.lm_head.lora_B.weight": tensor([32, rank], seed=71),
    }


def config(**fields: Any) -> bytes:
    plain = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "org/tiny",
    }
    return json.dumps({**plain, **fields}).encode()


def files(seed: int = 0, **fields: Any) -> AdapterFiles:
    """A small sound adapter on q_proj; different seeds give different content."""
    return AdapterFiles(
        config(**fields), safetensors(lora_tensors(seed=seed * 100)), "test://files"
    )
