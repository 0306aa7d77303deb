"""What an adapter does to a base projection beside adding its low-rank update: DoRA and biases.

DoRA (Liu et al. 2024) computes m / ‖W + sBA‖ ⊙ (Wx + sBAx), row by row; with g for the factor, a
base bias b0, and b1 the bias that the adapter wants:

    y = g ⊙ Wx + b1 + (g ⊙ sB)Ax  =  y0 + (g - 1) ⊙ y0 + (b1 - g ⊙ b0) + (g ⊙ sB)Ax,  y0 = Wx + b0

So B is stored times g, and what is left is a scale (stored as g - 1, which is small: half precision
keeps it well) and a shift of y0. This runs before lora_apply adds the last term.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kernels.lora.naive import read_span
from kernels.lora.plan import PageRun


class AffineSlice(NamedTuple):
    """One projection of a group. Offsets as in kernels/lora/plan.py; -1: there is none."""

    scale_offset: int  # g - 1, [out_features]
    shift_offset: int  # [out_features]
    out_start: int  # its first column in the group's output
    out_features: int


class AffineSegment(NamedTuple):
    """Tokens [start, end) of a batch whose adapter rescales or shifts projections of a group."""

    start: int
    end: int
    pages: PageRun
    slices: tuple[AffineSlice, ...]


def lora_affine(
    y: torch.Tensor, layer_pages: torch.Tensor, segments: Sequence[AffineSegment]
) -> None:
    """Rescales and shifts the base projection of each segment, in place.

    Semantics:
        for s in segments, p in s.slices:
            y[s.start:s.end, p.out] += scale[s, p] * y[s.start:s.end, p.out] + shift[s, p]

    y: [num_tokens, out_features] pool dtype; columns contiguous
    layer_pages: [num_pages, page_elems] pool dtype, contiguous: one layer of the pool
    segments: disjoint, in order of start

    Raises: ValueError for shapes, dtypes or segments that do not fit together.
    """
    _check(y, layer_pages, segments)
    for start, end, pages, slices in segments:
        for scale_offset, shift_offset, out_start, out_features in slices:
            part = y[start:end, out_start : out_start + out_features]
            if scale_offset >= 0:
                part.addcmul_(part, read_span(layer_pages, pages, scale_offset, 1, out_features))
            if shift_offset >= 0:
                part.add_(read_span(layer_pages, pages, shift_offset, 1, out_features))


def _check(y: torch.Tensor, layer_pages: torch.Tensor, segments: Sequence[AffineSegment]) -> None:
    if y.dtype != layer_pages.dtype:
        raise ValueError(f"dtypes differ: y {y.dtype}, pages {layer_pages.dtype}")
    if y.dim() != 2 or layer_pages.dim() != 2 or not layer_pages.is_contiguous():
        raise ValueError("y is not [num_tokens, …] or layer_pages not [num_pages, page_elems]")
    previous = 0
    for start, end, _, slices in segments:
        if not previous <= start < end <= y.shape[0]:
            raise ValueError(f"segment [{start}, {end}) overlaps or leaves the batch")
        previous = end
        for part in slices:
            if part.out_start < 0 or part.out_start + part.out_features > y.shape[1]:
                raise ValueError(f"{part} leaves the {y.shape[1]} output columns")
