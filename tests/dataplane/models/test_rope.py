"""Rotary tables against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from dataplane.models.families import FAMILIES
from dataplane.models.rope import RopeReader

CONTEXT = 512
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {**LLAMA3, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {**LLAMA3, "low_freq_factor": 1, "high_freq_factor": 16},
        YARN,
        {**YARN, "beta_fast": 16, "beta_slow": 2},
        {**YARN, "attention_factor": 0.9},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
        {**YARN, "truncate": False},
        {"rope_type": "yarn", "factor": 2.0},
    ],
)
@pytest.mark.parametrize("theta", [100.0, 500000.0])
def test_tables_equal_transformers(scaling: dict[str, Any], theta: float) -> None:
    fields = {
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {**scaling, "rope_theta": theta},
    }
    config = LlamaConfig(hidden_size=128, num_attention_heads=4, **fields)
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(CONTEXT)[None])
    rope, _ = RopeReader(fields, FAMILIES["LlamaForCausalLM"], 32).read()
    ours = rope.tables(CONTEXT, torch.float32, torch.device("cpu"))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected[0], rtol=0, atol=1e-4)
