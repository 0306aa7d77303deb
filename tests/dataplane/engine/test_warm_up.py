"""The steps before the first request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dataplane.engine import warm_up as module
from dataplane.engine.warm_up import warm_up
from dataplane.models.config_json import load_config
from dataplane.models.decoder import Batch, Decoder
from dataplane.models.shapes import GROUPS
from dataplane.models.weights import load_weights
from dataplane.pool.pool import PagePool
from dataplane.sampling.plan import SamplingPlan
from dataplane.sampling.sampler import Picks, pick
from kernels.lora.metadata import LoraGroup
from tests.helpers.models import make_model, save_model


@pytest.mark.parametrize(("num_pages", "stream"), [(1, None), (3, object())])
def test_it_runs_all_kernels_and_leaves_no_trace(
    num_pages: int, stream: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = save_model(make_model("gemma2"), tmp_path / "model")
    config, device = load_config(model_dir), torch.device("cpu")
    weights = load_weights(model_dir, config, torch.float32, device)
    pool = PagePool(config, page_tokens=8, num_pages=num_pages, dtype=torch.float32, device=device)
    batches: list[tuple[int, int]] = []
    adapters: list[Mapping[str, object]] = []
    plans: list[SamplingPlan] = []

    class Recorded(Decoder):
        def forward(self, batch: Batch, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
            adapters.extend(batch.layers)
            without = replace(batch, layers=[{}] * config.num_layers)
            logits = super().forward(without, pool, page_tokens)
            assert logits.shape[0] == 2 and bool(logits.isfinite().all()) and bool(pool.any())
            batches.append((len(batch.attention.prefill), len(batch.attention.decode_rows)))
            return logits

    def recorded(logits: torch.Tensor, plan: SamplingPlan, previous_ids: Any = None) -> Picks:
        plans.append(plan)
        return pick(logits, plan, previous_ids)

    monkeypatch.setattr(module, "pick", recorded)
    warm_up(Recorded(config, weights, 64, stream), pool)
    assert batches == [(1, 1)] * (2 if stream else 1)
    beside = adapters[config.num_layers :]
    assert all(tuple(each) == GROUPS for each in beside) and bool(beside) is bool(stream)
    assert all(isinstance(group, LoraGroup) for each in beside for group in each.values())
    plan, unchanged = plans
    assert plan.histories and plan.banned and plan.draws and plan.asked is not None
    assert plan.mask is not None
    assert None not in vars(plan.draws.filters).values()
    assert unchanged.draws and unchanged.changed is None
    assert not bool(pool.data.any())
