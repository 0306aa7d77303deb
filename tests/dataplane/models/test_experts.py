"""Mixtures of experts: what config.json may say, and checkpoints, whole and damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.models import Shape, write_model
from dataplane.errors import CheckpointError, UnsupportedModelError
from dataplane.models.config import ModelConfig
from dataplane.models.config_json import load_config, parse_config
from dataplane.models.shapes import layer_groups, layer_modules, module_layers
from dataplane.models.weights import ModelWeights, fingerprint, load_weights
from dataplane.parallel.shard import Shard
from tests.dataplane.models.test_weights import MEASURE
from tests.helpers.models import make_model, save_model

ARCHITECTURES = ("mixtral", "qwen2-moe", "qwen3-moe")
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "vocab_size": 128,
}


def config_of(name: str, **fields: object) -> ModelConfig:
    return parse_config({"architectures": [name], **SHAPE, **fields})


def test_what_is_not_told_is_as_in_transformers() -> None:
    from transformers import MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig

    for name, known in (
        ("MixtralForCausalLM", MixtralConfig()),
        ("Qwen2MoeForCausalLM", Qwen2MoeConfig()),
        ("Qwen3MoeForCausalLM", Qwen3MoeConfig()),
    ):
        config = config_of(name)
        experts = config.experts
        assert experts is not None and all(experts.sparse_layers)
        assert experts.top_k == known.num_experts_per_tok
        count = known.num_local_experts if "Mixtral" in name else known.num_experts
        assert experts.num_experts == count
        inter = 96 if "Mixtral" in name else known.moe_intermediate_size
        assert experts.intermediate_size == inter
        shared = getattr(known, "shared_expert_intermediate_size", 0)
        assert experts.shared_intermediate_size == shared
        assert experts.normalizes == getattr(known, "norm_topk_prob", True)
        assert config.max_position_embeddings == known.max_position_embeddings
        assert config.rms_norm_eps == known.rms_norm_eps
        assert config.ropes[0].theta == known.rope_parameters["rope_theta"]
        assert config.qkv_bias == ("Qwen2" in name) and not config.o_bias
        assert config.qk_norm == ("Qwen3" in name)


def test_layers_are_sparse_or_dense() -> None:
    config = config_of(
        "Qwen2MoeForCausalLM", decoder_sparse_step=2, mlp_only_layers=[1], num_hidden_layers=6
    )
    assert config.experts is not None
    assert config.experts.sparse_layers == (False, False, False, True, False, True)
    assert layer_groups(config, 3)["down"].in_features == 5632
    assert layer_groups(config, 4)["down"].in_features == 96
    modules = layer_modules(config)
    assert modules["mlp.shared_expert.gate_proj"] == (64, 5632)
    assert modules["mlp.down_proj"] == (96, 64)
    layers = module_layers(config)
    assert layers["mlp.shared_expert.gate_proj"] == (3, 5)
    assert layers["mlp.gate_proj"] == (0, 1, 2, 4)
    assert "self_attn.q_proj" not in layers
    assert set(layer_groups(config_of("MixtralForCausalLM"), 0)) == {"qkv", "o"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Mixtral", {"num_local_experts": 0}),
        ("Mixtral", {"num_local_experts": 5000}),
        ("Mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}),
        ("Mixtral", {"num_experts_per_tok": True}),
        ("Qwen3Moe", {"num_experts": 8, "num_local_experts": 9}),
        ("Qwen3Moe", {"moe_intermediate_size": "8"}),
        ("Qwen3Moe", {"decoder_sparse_step": 0}),
        ("Qwen3Moe", {"mlp_only_layers": "0"}),
        ("Qwen3Moe", {"mlp_only_layers": [True]}),
        ("Qwen3Moe", {"norm_topk_prob": 1}),
        ("Qwen3Moe", {"use_sliding_window": True}),
        ("Qwen2Moe", {"layer_types": ["sliding_attention"] * 4}),
        ("Qwen2Moe", {"shared_expert_intermediate_size": 0}),
        ("Qwen2Moe", {"qkv_bias": "yes"}),
    ],
)
def test_other_fields_are_refused_by_name(name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        config_of(f"{name}ForCausalLM", **fields)
    assert caught.value.reason == "MODEL_UNSUPPORTED"
    assert caught.value.metadata["field"] in fields


def test_quantised_experts_and_several_ranks_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="quantization_config") as caught:
        config_of("MixtralForCausalLM", quantization_config={"quant_method": "gptq", "bits": 4})
    assert caught.value.reason == "QUANTIZED_EXPERTS"
    config = config_of("MixtralForCausalLM")
    assert Shard(config, 0, 1).local == config
    with pytest.raises(UnsupportedModelError, match="--tensor-parallel 2") as caught:
        Shard(config, 0, 2)
    assert caught.value.reason == "TENSOR_PARALLEL_EXPERTS"


def test_the_fingerprint_is_of_the_experts_too() -> None:
    prints = {
        fingerprint(config_of("Qwen3MoeForCausalLM", **fields))
        for fields in (
            {},
            {"num_experts": 64},
            {"num_experts_per_tok": 4},
            {"norm_topk_prob": True},
            {"mlp_only_layers": [0]},
        )
    }
    assert len(prints) == 5


@pytest.fixture(params=ARCHITECTURES)
def model_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_model(make_model(request.param), tmp_path / "model")


def load(model_dir: Path) -> ModelWeights:
    cpu = torch.device("cpu")
    return load_weights(model_dir, load_config(model_dir), torch.float32, cpu)


def everything(weights: ModelWeights) -> list[torch.Tensor]:
    """Of the mixtures."""
    found: list[torch.Tensor] = []
    for layer in weights.layers:
        if layer.experts is not None:
            gate = layer.experts.shared_gate
            found += [layer.experts.router, *([] if gate is None else [gate])]
            found += [*layer.experts.gate_up, *layer.experts.down]  # pyright: ignore
    return found


def test_experts_in_one_piece_are_the_same(model_dir: Path, tmp_path: Path) -> None:
    """Which is how transformers 5 has them in memory, and writes them when asked to."""
    apart = everything(load(model_dir))
    fused = tmp_path / "fused"
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(
        fused, save_original_format=False
    )
    names = load_file(fused / "model.safetensors")
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in names)
    whole = everything(load(fused))
    assert len(whole) == len(apart) > 0
    assert all(map(torch.equal, whole, apart))


Change = Callable[[dict[str, torch.Tensor], str], None]


def lose(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def cut_short(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][:-1].clone()


def as_integers(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.int32)


def one_more(tensors: dict[str, torch.Tensor], name: str) -> None:
    before, _, rest = name.partition(".experts.")
    count = 1 + max(
        int(each.partition(".experts.")[2].split(".")[0])
        for each in tensors
        if before in each and ".experts." in each
    )
    tensors[f"{before}.experts.{count}.{rest.partition('.')[2]}"] = tensors[name].clone()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lose, "TENSOR_MISSING"),
        (cut_short, "TENSOR_SHAPE"),
        (as_integers, "CHECKPOINT_DTYPE"),
        (one_more, "TENSOR_SHAPE"),
    ],
)
def test_damaged_checkpoints(model_dir: Path, change: Change, reason: str) -> None:
    path = model_dir / "model.safetensors"
    tensors = load_file(path)
    names = [name for name in tensors if ".experts.2." in name]
    for name in (names[0], names[-1]):
        broken = dict(tensors)
        change(broken, name)
        save_file(broken, path)
        with pytest.raises(CheckpointError) as caught:
            load(model_dir)
        assert caught.value.reason == reason
        assert ".experts." in caught.value.metadata["tensor"]


def test_damaged_experts_in_one_piece(tmp_path: Path) -> None:
    model = make_model("mixtral")
    model.save_pretrained(tmp_path / "model", save_original_format=False)
    path = tmp_path / "model" / "model.safetensors"
    tensors: Mapping[str, torch.Tensor] = load_file(path)
    name = "model.layers.1.mlp.experts.down_proj"
    for shape in ((slice(0, 4),), (slice(None), slice(0, 63)), (slice(None), slice(None), 0)):
        save_file({**tensors, name: tensors[name][shape].clone()}, path)
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / "model")
        assert (caught.value.reason, caught.value.metadata["tensor"]) == ("TENSOR_SHAPE", name)


@pytest.mark.parametrize("fused", [False, True])
def test_sizes_of_experts_in_config_json_alone_take_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fused: bool
) -> None:
    make_model("mixtral").save_pretrained(tmp_path, save_original_format=not fused)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "intermediate_size": 1 << 24}))
    made: list[int] = []
    empty = torch.empty

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(empty(*args, **{**kwargs, "device": "meta"}).numel())
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", counting)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert caught.value.reason == "TENSOR_SHAPE"
    assert 0 < max(made) < 1 << 24


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    shape = Shape(512, 1536, 4, 8, 8, 512, num_experts=8, top_k=2)
    write_model(tmp_path / "model", shape)
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size > 150e6
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "model"), "bfloat16"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{root}:{root}/protos", "OMP_NUM_THREADS": "1"},
    )
    assert 0.95 * size < int(found.stdout) < 1.2 * size
