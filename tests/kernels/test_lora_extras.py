"""Rescaling and shifting of base projections: the formula of DoRA, and what it must not touch."""

from __future__ import annotations

import pytest
import torch

from kernels.lora.extras import AffineSegment, AffineSlice, lora_affine
from kernels.lora.op import lora_apply
from kernels.lora.plan import ExpandSlice, GroupPlan, PageRun, Segment

PAGE_ELEMS = 32
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def laid(values: torch.Tensor, layer_pages: torch.Tensor, page_ids: list[int]) -> PageRun:
    for index, page in enumerate(page_ids):
        part = values[index * PAGE_ELEMS : (index + 1) * PAGE_ELEMS]
        layer_pages[page, : part.numel()] = part
    return PageRun.of(page_ids)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("page_ids", [[3, 4, 5, 6], [6, 1, 7, 2]])
def test_only_its_rows_and_columns_change(page_ids: list[int], device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    layer_pages = torch.full((8, PAGE_ELEMS), float("nan"), device=device)
    scale, shift = torch.randn(24, generator=generator), torch.randn(40, generator=generator)
    flat = torch.cat((torch.full((7,), float("nan")), scale, shift)).to(device)
    run = laid(flat, layer_pages, page_ids)
    slices = (
        AffineSlice(7, 7 + 24, 0, 24),  # scaled by `scale`, shifted by shift[:24]
        AffineSlice(-1, 7 + 24 + 24, 40, 16),  # shifted by shift[24:]
    )
    base = torch.randn(9, 60, generator=generator).to(device)
    y = base.clone()
    lora_affine(
        y, layer_pages, [AffineSegment(2, 3, run, slices), AffineSegment(5, 9, run, slices)]
    )
    expected = base.clone()
    for rows in (slice(2, 3), slice(5, 9)):
        expected[rows, :24] += base[rows, :24] * scale.to(device) + shift[:24].to(device)
        expected[rows, 40:56] += shift[24:].to(device)
    torch.testing.assert_close(y, expected)
    assert torch.equal(y[[0, 1, 3, 4]], base[[0, 1, 3, 4]])
    assert torch.equal(y[:, 24:40], base[:, 24:40])
    assert torch.equal(y[:, 56:], base[:, 56:])


def test_with_lora_it_is_dora() -> None:
    """m / ‖W + sBA‖ ⊙ (W + sBA)x + b, as the paper has it, out of the parts as they are stored."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weight, bias, a, b = normal(12, 8), normal(12), normal(2, 8), 0.7 * normal(12, 2)
    magnitude, x = normal(12).abs() + 0.5, normal(5, 8)
    adapted = weight + b @ a
    factor = magnitude / adapted.norm(dim=1)
    expected = x @ (factor.unsqueeze(1) * adapted).T + bias

    flat = torch.cat(
        (a.reshape(-1), (factor.unsqueeze(1) * b).T.reshape(-1), factor - 1, bias - factor * bias)
    )
    layer_pages = torch.zeros(4, PAGE_ELEMS)
    run = laid(flat, layer_pages, [0, 1, 2, 3])
    y = x @ weight.T + bias
    lora_affine(y, layer_pages, [AffineSegment(0, 5, run, (AffineSlice(40, 52, 0, 12),))])
    plan = GroupPlan(2, 8, 0, (ExpandSlice(0, 2, 16, 0, 12),))
    lora_apply(y, x, layer_pages, [Segment(0, 5, run, plan)])
    torch.testing.assert_close(y, expected)


def test_factors_near_one_survive_half_precision() -> None:
    """bfloat16 has no number between 1 and 1.0078: g itself would be lost."""
    scale = torch.full((PAGE_ELEMS,), 0.003, dtype=torch.bfloat16)
    y = torch.full((1, PAGE_ELEMS), 1.9921875, dtype=torch.bfloat16)
    segment = AffineSegment(0, 1, PageRun.of([0]), (AffineSlice(0, -1, 0, PAGE_ELEMS),))
    lora_affine(y, scale.view(1, -1), [segment])
    assert (y == torch.tensor(1.9921875 * 1.003, dtype=torch.bfloat16)).all()


def test_misfits_are_refused() -> None:
    layer_pages, y = torch.zeros(2, PAGE_ELEMS), torch.zeros(4, 8)
    run = PageRun.of([0])
    part = (AffineSlice(0, -1, 0, 8),)
    good = AffineSegment(0, 2, run, part)
    for bad in (
        (y.double(), layer_pages, [good]),
        (y.view(-1), layer_pages, [good]),
        (y, layer_pages.t(), [good]),
        (y, layer_pages, [good, AffineSegment(1, 3, run, part)]),
        (y, layer_pages, [AffineSegment(3, 5, run, part)]),
        (y, layer_pages, [AffineSegment(0, 2, run, (AffineSlice(0, -1, 4, 8),))]),
    ):
        with pytest.raises(ValueError):
            lora_affine(*bad)
