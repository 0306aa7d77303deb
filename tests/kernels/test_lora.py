"""LoRA over pages against the plain product, for every layout of pages."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numba import njit

from kernels.cpu.floats import bits_of, load, store
from kernels.lora import cpu
from kernels.lora.naive import lora_expand, lora_shrink
from kernels.lora.op import lora_apply
from kernels.lora.plan import (
    ExpandSlice,
    GroupPlan,
    LoraSpans,
    PageRun,
    Segment,
    SegmentGroup,
    plan_row,
)

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
        page_elems = layer_pages.shape[1]
        assert flat.numel() <= len(page_ids) * page_elems
        for index, page in enumerate(page_ids):
            part = flat[index * page_elems : (index + 1) * page_elems]
            layer_pages[page, : part.numel()] = part
        self.pages = PageRun.of(page_ids)

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
    run = PageRun.of([0])
    x, y = torch.zeros(4, 8), torch.zeros(4, 8)
    good = Segment(0, 2, run, plan)
    for bad in (
        (y.double(), x, layer_pages, [good]),
        (y[:3], x, layer_pages, [good]),
        (y, x[:, :7], layer_pages, [good]),
        (y, torch.zeros(8, 4).T, layer_pages, [good]),
        (y, x, layer_pages.view(-1), [good]),
        (y, x, layer_pages, [good, Segment(1, 3, run, plan)]),
        (y, x, layer_pages, [Segment(3, 5, run, plan)]),
    ):
        with pytest.raises(ValueError):
            lora_apply(*bad)
        y_bad, x_bad, pages_bad, segments = bad
        spans = [each[:2] for each in segments]
        rows = np.array([plan_row(plan)] * len(spans), dtype=np.int64)
        group = SegmentGroup(LoraSpans.of(spans, [run] * len(spans)), rows, [plan] * len(spans))
        with pytest.raises(ValueError):  # as arrays, which kernels read without looking
            lora_apply(y_bad, x_bad, pages_bad, group)


@njit
def _narrowed(values, out):  # pragma: no cover - compiled
    for index in range(values.size):
        store(out, index, values[index])


@njit
def _widened(bits, out):  # pragma: no cover - compiled
    for index in range(bits.size):
        out[index] = load(bits[index])


def test_bfloat16_in_numba_rounds_as_torch() -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    widened = np.empty(1 << 16, dtype=np.float32)
    _widened(bits_of(every), widened)
    assert torch.equal(torch.from_numpy(widened).nan_to_num(7.0), every.float().nan_to_num(7.0))
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 1 << 32, size=200_000, dtype=np.uint32)
    ties = (generator.integers(0, 1 << 16, size=20_000, dtype=np.uint32) << 16) | 0x8000
    values = np.concatenate([patterns, ties]).view(np.float32)
    bits = np.empty(values.size, dtype=np.uint16)
    _narrowed(values, bits)
    expected = torch.from_numpy(values).to(torch.bfloat16)
    actual = torch.from_numpy(bits).view(torch.bfloat16)
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(7.0), expected.nan_to_num(7.0))


class Sizes(NamedTuple):
    page_elems: int
    pages_each: int
    in_features: int
    outs: tuple[int, int]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ["consecutive", "scattered"])
@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 16, 40], [17, 2, 5], [33, 1, 3]])
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(96, 60, 40, (48, 16)),  # rows that go on in another page, nothing fills a tile
        Sizes(100, 80, 16, (128, 64)),  # rows of several pages, whole tiles
        Sizes(1000, 16, 72, (144, 64)),  # rows that lie together, and some that do not
        Sizes(9000, 2, 11, (70, 130)),  # less than a vector
    ],
)
def test_numba_kernel_equals_its_twin(
    sizes: Sizes, lengths: list[int], order: str, dtype: torch.dtype
) -> None:
    """Segments of one token, of a block, of several; an adapter without the group."""
    generator = torch.Generator().manual_seed(5)
    first_out, second_out = sizes.outs
    pages_each = sizes.pages_each
    layer_pages = torch.full((4 * pages_each, sizes.page_elems), float("nan"), dtype=dtype)
    ids = list(range(4 * pages_each))
    if order == "scattered":
        random.Random(2).shuffle(ids)
    outs = [(0, first_out), (first_out, second_out)]
    adapters = [
        Adapter(
            layer_pages,
            ids[index * pages_each : (index + 1) * pages_each],
            sizes.in_features,
            [(rank, *out) for rank, out in zip(pair, outs, strict=True)],
            generator,
        )
        for index, pair in enumerate([(3, 16), (16, 1), (29, 8)])
    ]
    without = PageRun.of(ids[3 * pages_each :])
    bounds, start = [], 1  # row 0 is base-only
    for length in (*lengths, 2):
        bounds.append((start, start + length))
        start += length
    runs = [*(adapter.pages for adapter in adapters), without]
    plans = [*(adapter.plan for adapter in adapters), None]
    rows = np.array([plan_row(plan) for plan in plans], dtype=np.int64)
    group = SegmentGroup(LoraSpans.of(bounds, runs), rows, plans)
    assert len(group) == 3
    x = torch.randn(start, sizes.in_features, generator=generator).to(dtype)
    base = torch.randn(start, first_out + second_out, generator=generator).to(dtype)
    expected = base.float().clone()
    lora_expand(
        expected,
        lora_shrink(x.float(), layer_pages.float(), list(group)),
        layer_pages.float(),
        list(group),
    )
    y = base.clone()
    lora_apply(y, x, layer_pages, group)
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance * 20)
    assert torch.equal(y[0], base[0]) and torch.equal(y[-1], base[-1])
    assert cpu.supports(x)
    # A token gets the same, to the bit, whoever else is in its block.
    for (first, end), run, plan, row in zip(bounds, runs, plans, rows, strict=True):
        for token in {first, (first + end) // 2, end - 1}:
            alone = base[token : token + 1].clone()
            one = SegmentGroup(LoraSpans.of([(0, 1)], [run]), row[None], [plan])
            lora_apply(alone, x[token : token + 1], layer_pages, one)
            assert torch.equal(alone[0], y[token])
