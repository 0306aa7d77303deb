"""Adapters' products on a second stream, when a forward pass ends early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dataplane.models import decoder as decoder_module
from dataplane.models.config_json import load_config
from dataplane.models.decoder import Batch, Decoder
from dataplane.models.weights import load_weights
from dataplane.pool.pool import PagePool
from kernels.attention.metadata import Queries, attention_metadata
from tests.helpers.models import make_model, save_model

CPU = torch.device("cpu")


class NoMemory:
    """Of the products that run beside others, the second lacks memory."""

    def __init__(self, side: object) -> None:
        self.num_products = self.num_finished = 0
        made.append(self)

    def project(self, base: Any, out_features: int, x: torch.Tensor, *rest: object) -> object:
        self.num_products += 1
        if self.num_products == 2:
            raise torch.OutOfMemoryError("no memory for a branch's output")
        return base(), None

    def finish(self) -> None:
        self.num_finished += 1


made: list[NoMemory] = []


def test_without_memory_the_second_stream_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a capture would end with a branch that nobody joined, which is another error."""
    made.clear()
    monkeypatch.setattr(decoder_module, "LoraBeside", NoMemory)
    model_dir = save_model(make_model("llama"), tmp_path / "model")
    config = load_config(model_dir)
    pool = PagePool(config, page_tokens=8, num_pages=2, dtype=torch.float32, device=CPU)
    stream: Any = object()
    decoder = Decoder(config, load_weights(model_dir, config, torch.float32, CPU), 64, stream)
    adapters: Any = {"qkv": object(), "o": object()}
    batch = Batch(
        token_ids=torch.tensor([3]),
        positions=torch.tensor([0]),
        page_index=torch.tensor([1]),
        page_offset=torch.tensor([0]),
        attention=attention_metadata([Queries(0, 1, 1, [1])], CPU),
        layers=[adapters] * config.num_layers,
        affine=(),
        logit_rows=torch.tensor([0]),
        lm_head=(),
    )
    with pytest.raises(torch.OutOfMemoryError):
        decoder.forward(batch, pool.data, 8)
    (beside,) = made
    assert (beside.num_products, beside.num_finished) == (2, 1)
