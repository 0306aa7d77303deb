"""Where a head's columns go: whole vectors, whatever the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataplane.lora.layout import AdapterLayout, head_columns, plan_layout
from dataplane.models.config import ModelConfig, load_config
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


def test_an_odd_head_leaves_the_layers_aligned(tmp_path: Path) -> None:
    odd = layout_of(tmp_path / "odd", 101, 3)
    assert odd.device_rows.alignment == 8 and odd.device_head_rows.alignment == 1
    assert odd.device_rows.max_total_rank == 9 and odd.device_head_rows.max_total_rank == 3
    assert np.array_equal(odd.device_rows.rows, odd.plan_rows)
    # 3 layers, and no multiple of 24
    even = layout_of(tmp_path / "even", 104, 3)
    assert even.device_rows.alignment == even.device_head_rows.alignment == 8
