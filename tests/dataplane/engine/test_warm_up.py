"""The forward pass before the first request."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataplane.engine.warm_up import warm_up
from dataplane.models.config import load_config
from dataplane.models.decoder import Batch, Decoder
from dataplane.models.weights import load_weights
from dataplane.pool.pool import PagePool
from tests.helpers.models import make_model, save_model


@pytest.mark.parametrize("num_pages", [1, 3])
def test_it_runs_prefill_and_decode_and_leaves_no_trace(num_pages: int, tmp_path: Path) -> None:
    model_dir = save_model(make_model("gemma2"), tmp_path / "model")
    config, device = load_config(model_dir), torch.device("cpu")
    weights = load_weights(model_dir, config, torch.float32, device)
    pool = PagePool(config, page_tokens=8, num_pages=num_pages, dtype=torch.float32, device=device)
    batches: list[tuple[int, int]] = []

    class Recorded(Decoder):
        def forward(self, batch: Batch, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
            logits = super().forward(batch, pool, page_tokens)
            assert logits.shape[0] == 2 and bool(logits.isfinite().all()) and bool(pool.any())
            batches.append((len(batch.attention.prefill), len(batch.attention.decode_rows)))
            return logits

    warm_up(Recorded(config, weights, 64), pool)
    assert batches == [(1, 1)]
    assert not bool(pool.data.any())
