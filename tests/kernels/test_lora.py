"""LoRA over pages against the plain product, for every layout of pages."""

from __future__ import annotations

import random

import pytest
import torch

from kernels.lora.op import lora_apply
from kernels.lora.plan import ExpandSlice, GroupPlan, PageRun, Segment

PAGE_ELEMS = 96
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Adapter:
    """Random A and B of a group of projections, laid into pages of a NaN-filled layer."""

    def __init__(
        self,
        layer_pages: torch.Tensor,
        page_ids: list[int],
        in_features: int,
        outs: list[tuple[int, int, int]],  # rank, out_start, out_features
        generator: torch.Generator,
    ) -> None:
        def normal(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, generator=generator).to(layer_pages)

        total_rank = sum(rank for rank, _, _ in outs)
        self.a = normal(total_rank, in_features)
        self.b = [normal(rank, out_features) for rank, _, out_features in outs]
        flat = torch.cat([m.reshape(-1) for m in (self.a, *self.b)])
        slices, offset, rank_start = [], self.a.numel(), 0
        for rank, out_start, out_features in outs:
            slices.append(ExpandSlice(rank_start, rank, offset, out_start, out_features))
            rank_start += rank
            offset += rank * out_features
        self.plan = GroupPlan(total_rank, in_features, 0, tuple(slices))
        assert flat.numel() <= len(page_ids) * PAGE_ELEMS
        for index, page in enumerate(page_ids):
            part = flat[index * PAGE_ELEMS : (index + 1) * PAGE_ELEMS]
            layer_pages[page, : part.numel()] = part
        self.pages = PageRun.of(page_ids, layer_pages.device)

    def delta(self, x: torch.Tensor, out_features: int) -> torch.Tensor:
        y = torch.zeros(x.shape[0], out_features, dtype=x.dtype, device=x.device)
        for part, b in zip(self.plan.slices, self.b, strict=True):
            a = self.a[part.rank_start : part.rank_start + part.rank]
            y[:, part.out_start : part.out_start + part.out_features] += x @ a.T @ b
        return y


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ["consecutive", "scattered"])
@pytest.mark.parametrize("ranks", [(1, 1), (3, 7), (64, 8), (256, 16)])
def test_segments_get_their_own_adapter(ranks: tuple[int, int], order: str, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    in_features, outs = 40, [(0, 48), (48, 16)]
    out_features, count = 64, 3
    per_adapter = -(-(sum(ranks) * in_features + ranks[0] * 48 + ranks[1] * 16) // PAGE_ELEMS)
    layer_pages = torch.full((per_adapter * count + 5, PAGE_ELEMS), float("nan"), device=device)
    ids = list(range(per_adapter * count + 5))
    if order == "scattered":
        random.Random(1).shuffle(ids)
    adapters = [
        Adapter(
            layer_pages,
            ids[index * per_adapter : (index + 1) * per_adapter],
            in_features,
            [(rank, *out) for rank, out in zip(ranks, outs, strict=True)],
            generator,
        )
        for index in range(count)
    ]
    assert (adapters[0].pages.first >= 0) == (order == "consecutive")
    x = torch.randn(20, in_features, generator=generator).to(device)
    base = torch.randn(20, out_features, generator=generator).to(device)
    # Tokens 0-1, 9 and 17-19 are base-only.
    bounds = [(2, 3), (3, 9), (10, 17)]
    y, expected = base.clone(), base.clone()
    for (start, end), adapter in zip(bounds, adapters, strict=True):
        expected[start:end] += adapter.delta(x[start:end], out_features)
    lora_apply(
        y,
        x,
        layer_pages,
        [Segment(*b, a.pages, a.plan) for b, a in zip(bounds, adapters, strict=True)],
    )
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    for row in (0, 1, 9, 17, 18, 19):
        assert torch.equal(y[row], base[row])


def test_a_partial_group_leaves_other_projections_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    layer_pages = torch.full((12, PAGE_ELEMS), float("nan"))
    adapter = Adapter(layer_pages, list(range(12)), 32, [(8, 48, 16)], generator)
    x = torch.randn(4, 32, generator=generator)
    y = torch.zeros(4, 64)
    lora_apply(y, x, layer_pages, [Segment(0, 4, adapter.pages, adapter.plan)])
    assert torch.equal(y[:, :48], torch.zeros(4, 48))
    torch.testing.assert_close(y, adapter.delta(x, 64))


def test_misfits_are_refused() -> None:
    layer_pages = torch.zeros(4, PAGE_ELEMS)
    plan = GroupPlan(1, 8, 0, (ExpandSlice(0, 1, 8, 0, 8),))
    run = PageRun.of([0], torch.device("cpu"))
    x, y = torch.zeros(4, 8), torch.zeros(4, 8)
    good = Segment(0, 2, run, plan)
    for bad in (
        (y.double(), x, layer_pages, [good]),
        (y[:3], x, layer_pages, [good]),
        (y, x[:, :7], layer_pages, [good]),
        (y, x, layer_pages.view(-1), [good]),
        (y, x, layer_pages, [good, Segment(1, 3, run, plan)]),
        (y, x, layer_pages, [Segment(3, 5, run, plan)]),
    ):
        with pytest.raises(ValueError):
            lora_apply(*bad)
