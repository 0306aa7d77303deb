"""Loading a quantised checkpoint on a CPU takes little more memory than the dequantised model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.dataplane.models.test_weights import MEASURE

HIDDEN, INTER, VOCAB, LAYERS = 1024, 4096, 1000, 5


def gptq(outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    """Whose codes are moved the most, to be rows of outputs."""
    groups = inputs // 128
    order = torch.randperm(inputs).int() // 128
    return {
        "qweight": torch.randint(-(2**31), 2**31, (inputs // 8, outputs)).int(),
        "qzeros": torch.full((groups, outputs // 8), 0x77777777).int(),
        "scales": torch.rand(groups, outputs).half(),
        "g_idx": order,
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_takes_little_more_memory_than_the_dequantised_weights(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
        "quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    norm = torch.ones(HIDDEN)
    tensors = {"model.embed_tokens.weight": torch.ones(VOCAB, HIDDEN), "model.norm.weight": norm}
    size = VOCAB * HIDDEN
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes = {f"self_attn.{each}_proj": (HIDDEN, HIDDEN) for each in "qkvo"}
        shapes |= {f"mlp.{each}_proj": (INTER, HIDDEN) for each in ("gate", "up")}
        shapes["mlp.down_proj"] = (HIDDEN, INTER)
        for module, shape in shapes.items():
            size += shape[0] * shape[1]
            tensors |= {f"{prefix}{module}.{k}": v for k, v in gptq(*shape).items()}
        for each in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{each}.weight"] = norm.clone()
    save_file(tensors, tmp_path / "model.safetensors")
    root = Path(__file__).parents[4]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), "bfloat16"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{root}:{root}/protos", "OMP_NUM_THREADS": "1"},
    )
    assert 0.95 * 2 * size < int(found.stdout) < 1.3 * 2 * size
