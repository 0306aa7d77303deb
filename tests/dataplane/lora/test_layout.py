"""Where matrices go: a head's columns, whole vectors, whatever the vocabulary; and experts'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dataplane.errors import AdapterRefusedError
from dataplane.lora import layout as layout_module
from dataplane.lora.layout import AdapterLayout, head_columns, pack, plan_layout
from dataplane.models.config import ModelConfig
from dataplane.models.config_json import load_config
from dataplane.models.weights import load_weights
from storage.adapter.manifest import parse_adapter
from tests.helpers.models import TARGETS, add_adapter, make_model, save_model


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return load_config(save_model(make_model("llama"), tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    ("num_layers", "vocab"), [(3, 128), (28, 151_936), (32, 32_001), (5, 101), (9, 20)]
)
def test_shares_cover_all_columns_and_begin_at_whole_vectors(
    config: ModelConfig, num_layers: int, vocab: int
) -> None:
    shares = head_columns(replace(config, num_layers=num_layers, vocab_size=vocab))
    assert len(shares) == num_layers
    for total, pairs in (
        (config.hidden_size, [share[:2] for share in shares]),
        (vocab, [share[2:] for share in shares]),
    ):
        assert [at for start, end in pairs for at in range(start, end)] == list(range(total))
        assert all(start % 8 == 0 for start, end in pairs if start < end)
        widths = [end - start for start, end in pairs]
        assert widths == sorted(widths, reverse=True)  # the first one sizes the intermediate


def layout_of(tmp_path: Path, vocab: int, rank: int) -> AdapterLayout:
    model = make_model("llama", vocab_size=vocab)
    config = load_config(save_model(model, tmp_path / "model"))
    path = tmp_path / "adapter"
    add_adapter(model, "head", path, rank=rank, target_modules=TARGETS["with-head"], seed=0)
    files = (path / "adapter_config.json", path / "adapter_model.safetensors")
    return plan_layout(config, parse_adapter(*(file.read_bytes() for file in files)).manifest)


def test_experts_lie_in_blocks_of_one_size(tmp_path: Path) -> None:
    """Behind the layer's other matrices, one after the other, none in another's place; and what was
    trained is found where the plans say."""
    model = make_model("qwen3-moe", num_experts=8)
    config = load_config(save_model(model, tmp_path / "model"))
    path = tmp_path / "adapter"
    add_adapter(
        *(model, "a", path),
        rank=3,
        target_modules=["q_proj"],
        target_parameters=["gate_up_proj", "down_proj", "gate.weight"],
        rank_pattern={"experts.down_proj": 5},
        seed=0,
    )
    files = (path / "adapter_config.json", path / "adapter_model.safetensors")
    parsed = parse_adapter(*(file.read_bytes() for file in files))
    layout = plan_layout(config, parsed.manifest)
    assert layout.device_rows.alignment == 8
    assert [sorted(plans) for plans in layout.layers] == [
        ["experts_down", "experts_gate_up", "qkv", "router"] if layer != 1 else ["qkv"]
        for layer in range(3)
    ]
    weights = load_weights(tmp_path / "model", config, torch.float32, torch.device("cpu"))
    packed = pack(config, weights, parsed, page_elems=1000, dtype=torch.float32)
    flat = packed.pages[2].flatten()
    taken = torch.zeros(len(flat), dtype=torch.int64)
    tensors = load_file(files[1])
    for name, key in (("experts_gate_up", "experts.base_layer"), ("experts_down", "experts")):
        rank = 3 if name == "experts_gate_up" else 5
        a, b = (
            tensors[f"base_model.model.model.layers.2.mlp.{key}.lora_{each}.weight"]
            for each in "AB"
        )
        for expert in range(8):
            plan = layout.layers[2][name].of_expert(expert)
            (part,) = plan.slices
            assert (plan.total_rank, part.rank) == (rank, rank)
            for offset, expected in (
                (plan.a_offset, a.view(8, rank, -1)[expert]),
                (part.b_offset, b.view(-1, rank, 8)[:, :, expert].T * 6 / rank),
            ):
                at = slice(offset, offset + expected.numel())
                torch.testing.assert_close(flat[at], expected.flatten())
                taken[at] += 1
    for plan in (layout.layers[2][name] for name in ("qkv", "router")):
        (part,) = plan.slices
        taken[plan.a_offset : plan.a_offset + plan.total_rank * plan.in_features] += 1
        taken[part.b_offset : part.b_offset + part.rank * part.out_features] += 1
    assert int(taken.max()) == 1 and taken[layout.elems :].sum() == 0


def test_more_than_offsets_reach_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of experts what is told is the way out for them."""
    model = make_model("mixtral")
    config = load_config(save_model(model, tmp_path / "model"))
    path = tmp_path / "adapter"
    parameters = ["down_proj"]
    add_adapter(model, "a", path, rank=3, target_modules=[], target_parameters=parameters, seed=0)
    files = (path / "adapter_config.json", path / "adapter_model.safetensors")
    parsed = parse_adapter(*(file.read_bytes() for file in files))
    weights = load_weights(tmp_path / "model", config, torch.float32, torch.device("cpu"))
    elems = plan_layout(config, parsed.manifest).elems
    assert elems == 5 * 3 * (112 + 64)
    monkeypatch.setattr(layout_module, "_MAX_LAYER_ELEMS", elems - 1)
    with pytest.raises(AdapterRefusedError, match="experts at a lower rank") as caught:
        pack(config, weights, parsed, page_elems=8, dtype=torch.float32)
    assert caught.value.reason == "ADAPTER_TOO_LARGE"


def test_an_odd_head_leaves_the_layers_aligned(tmp_path: Path) -> None:
    odd = layout_of(tmp_path / "odd", 101, 3)
    assert odd.device_rows.alignment == 8 and odd.device_head_rows.alignment == 1
    assert odd.device_rows.max_total_rank == 9 and odd.device_head_rows.max_total_rank == 3
    assert np.array_equal(odd.device_rows.rows, odd.plan_rows)
    # 3 layers, and no multiple of 24
    even = layout_of(tmp_path / "even", 104, 3)
    assert even.device_rows.alignment == even.device_head_rows.alignment == 8
