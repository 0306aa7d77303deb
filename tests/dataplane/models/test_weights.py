"""Loading checkpoints: whole, in shards, damaged, and how much memory it takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataplane.errors import CheckpointError
from dataplane.models.config_json import load_config
from dataplane.models.weights import ModelWeights, load_weights
from dataplane.parallel.shard import Shard
from tests.helpers.models import make_model, save_model
from tests.helpers.quantized import quantized_model

CPU = torch.device("cpu")


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return save_model(make_model("qwen2"), tmp_path / "model")


def load(model_dir: Path, dtype: torch.dtype = torch.float32) -> ModelWeights:
    return load_weights(model_dir, load_config(model_dir), dtype, CPU)


def shard(model_dir: Path, count: int) -> None:
    """Splits model.safetensors into `count` files and an index."""
    tensors = load_file(model_dir / "model.safetensors")
    (model_dir / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for index in range(count):
        file = f"model-{index + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[index::count]}
        save_file(part, model_dir / file)
        weight_map |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (model_dir / "model.safetensors.index.json").write_text(text)


def everything(weights: ModelWeights) -> list[torch.Tensor]:
    tensors = [weights.embed, weights.norm, weights.lm_head]
    for layer in weights.layers:
        tensors += [each for each in vars(layer).values() if isinstance(each, torch.Tensor)]
    return tensors


def test_shards_are_one_model(model_dir: Path) -> None:
    whole = everything(load(model_dir))
    shard(model_dir, 3)
    for one, other in zip(whole, everything(load(model_dir)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_converted(model_dir: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    path = model_dir / "model.safetensors"
    tensors = {name: value.to(stored) for name, value in load_file(path).items()}
    save_file(tensors, path)
    weights = load(model_dir, wanted)
    expected = tensors["model.embed_tokens.weight"].to(wanted)
    assert weights.embed.dtype == wanted
    assert torch.equal(weights.embed, expected)


def test_tied_heads_share_memory(model_dir: Path) -> None:
    weights = load(model_dir)
    assert weights.lm_head is weights.embed


def test_a_head_that_differs_in_spite_of_the_tie_is_refused(model_dir: Path) -> None:
    path = model_dir / "model.safetensors"
    tensors = load_file(path)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": head}, path)
    assert load(model_dir, torch.bfloat16).tied
    head[-1, -1] += 0.5
    save_file({**tensors, "lm_head.weight": head}, path)
    with pytest.raises(CheckpointError, match="tie_word_embeddings") as caught:
        load(model_dir)
    assert caught.value.reason == "HEAD_NOT_TIED"
    save_file({**tensors, "lm_head.weight": head[:-1].clone()}, path)
    with pytest.raises(CheckpointError, match="lm_head"):
        load(model_dir)


def test_an_index_of_an_earlier_save_does_not_count(model_dir: Path) -> None:
    """As save_pretrained leaves it behind; transformers takes the single file, too."""
    path = model_dir / "model.safetensors"
    latest = path.read_bytes()
    tensors = load_file(path)
    save_file({name: value + 1 for name, value in tensors.items()}, path)
    shard(model_dir, 2)
    path.write_bytes(latest)
    assert torch.equal(load(model_dir).norm, tensors["model.norm.weight"])
    next(model_dir.glob("model-00001-*")).unlink()
    assert torch.equal(load(model_dir).norm, tensors["model.norm.weight"])


def test_gemma_norms_are_one_plus_weight_in_float32(tmp_path: Path) -> None:
    model = make_model("gemma3")
    weights = load(save_model(model, tmp_path / "model"), torch.bfloat16)
    assert weights.norm.dtype == torch.float32
    assert torch.equal(weights.norm, 1 + model.state_dict()["model.norm.weight"])
    assert weights.layers[0].qkv.dtype == torch.bfloat16


def spoil_header(path: Path, **changes: object) -> None:
    """Rewrites the header entry of the embedding."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.embed_tokens.weight"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [0, 1 << 40]},
        {"data_offsets": [-4, 32764]},
        {"data_offsets": [0]},
        {"shape": [128, 65]},
        {"shape": [True, 64]},
        {"shape": "all"},
        {"dtype": "F8_E4M3"},
        {"dtype": ["F32"]},
    ],
)
def test_unsound_headers_are_refused(model_dir: Path, changes: dict[str, object]) -> None:
    spoil_header(model_dir / "model.safetensors", **changes)
    with pytest.raises(CheckpointError) as caught:
        load(model_dir)
    assert caught.value.reason in ("CHECKPOINT_UNREADABLE", "CHECKPOINT_DTYPE")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{]",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_damaged_files_are_refused(model_dir: Path, data: bytes) -> None:
    (model_dir / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load(model_dir)
    assert caught.value.reason == "CHECKPOINT_UNREADABLE"


def test_cut_missing_and_misfit_tensors_are_named(model_dir: Path) -> None:
    path = model_dir / "model.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-4])
    with pytest.raises(CheckpointError, match="cut or damaged"):
        load(model_dir)
    path.write_bytes(sound)
    tensors = load_file(path)
    name = "model.layers.1.self_attn.k_proj.bias"
    save_file({k: v for k, v in tensors.items() if k != name}, path)
    with pytest.raises(CheckpointError, match=name) as caught:
        load(model_dir)
    assert caught.value.reason == "TENSOR_MISSING"
    save_file({**tensors, name: torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=name) as caught:
        load(model_dir)
    assert caught.value.reason == "TENSOR_SHAPE"


@pytest.mark.parametrize("kind", ["plain", "quantised", "shard"])
@pytest.mark.parametrize("field", ["vocab_size", "intermediate_size"])
def test_what_config_json_says_of_sizes_alone_takes_no_memory(
    model_dir: Path, field: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest sizes that it may give are of terabytes together."""
    if kind == "quantised":
        quantized_model("awq", model_dir)
    made: list[int] = []
    empty = torch.empty

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        found = empty(*args, **{**kwargs, "device": "meta"})
        made.append(found.numel())
        return empty(*args, **kwargs)

    config = json.loads((model_dir / "config.json").read_bytes())
    (model_dir / "config.json").write_text(json.dumps({**config, field: 1 << 24}))
    shape = load_config(model_dir)
    part = Shard(shape, 0, 2) if kind == "shard" else None
    monkeypatch.setattr(torch, "empty", counting)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model_dir, shape, torch.float32, CPU, part)
    assert caught.value.reason == "TENSOR_SHAPE"
    assert max(made, default=0) < 1 << 24  # a reader's buffer is smaller


@pytest.mark.parametrize(
    "weight_map", [{"a": "../model.safetensors"}, {"a": "gone.safetensors"}, {"a": 5}, {"a": []}, 3]
)
def test_bad_indices_are_refused(model_dir: Path, weight_map: object) -> None:
    text = json.dumps({"weight_map": weight_map})
    (model_dir / "model.safetensors.index.json").write_text(text)
    (model_dir / "model.safetensors").rename(model_dir / "model-1.safetensors")
    with pytest.raises(CheckpointError):
        load(model_dir)


def test_nothing_to_load(model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        load(model_dir)
    assert caught.value.reason == "CHECKPOINT_MISSING"


MEASURE = """
import sys
from pathlib import Path
import torch
from dataplane.models.config_json import load_config
from dataplane.models.weights import load_weights

def status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024

model_dir = Path(sys.argv[1])
config = load_config(model_dir)
before = status("VmRSS")
weights = load_weights(model_dir, config, getattr(torch, sys.argv[2]), torch.device("cpu"))
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A directory of three shards of about 300 MB in all, and their bytes."""
    model_dir = tmp_path_factory.mktemp("large")
    yield model_dir, write_shards(model_dir)
    shutil.rmtree(model_dir)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_little_more_memory_than_the_weights(
    large_model: tuple[Path, int], dtype: str
) -> None:
    model_dir, size = large_model
    assert 280e6 < size < 330e6
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(model_dir), dtype],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{root}:{root}/protos", "OMP_NUM_THREADS": "1"},
    )
    loaded = size * (2 if dtype == "float32" else 1)
    assert 0.95 * loaded < int(found.stdout) < 1.2 * loaded


def write_shards(model_dir: Path) -> int:
    """A bfloat16 Llama in three files. Returns its bytes."""
    hidden, inter, vocab, layers = 1024, 4096, 26000, 6
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "vocab_size": vocab,
    }
    (model_dir / "config.json").write_text(json.dumps(config))
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (inter, hidden)
        shapes[f"{prefix}mlp.up_proj.weight"] = (inter, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inter)
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    weight_map: dict[str, str] = {}
    row = torch.randn(inter).bfloat16()
    size = 0
    for index in range(3):
        names = list(shapes)[index::3]
        tensors = {name: row[: shapes[name][-1]].expand(shapes[name]).clone() for name in names}
        size += sum(tensor.numel() * 2 for tensor in tensors.values())
        file = f"model-{index}.safetensors"
        save_file(tensors, model_dir / file)
        weight_map |= dict.fromkeys(names, file)
    text = json.dumps({"weight_map": weight_map})
    (model_dir / "model.safetensors.index.json").write_text(text)
    return size
