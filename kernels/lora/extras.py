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

import numpy as np
import torch

from kernels.gpu.dispatch import uses_triton
from kernels.lora.checks import check_launch, check_spans, check_tensors
from kernels.lora.metadata import LoraBatchMetadata, LoraGroup
from kernels.lora.naive import read_span
from kernels.lora.plan import MAX_SLICES, LoraSpans, PageRun, RowFormat


class AffineSlice(NamedTuple):
    """One projection of a group. Offsets as in kernels/lora/plan.py; -1: there is none."""

    scale_offset: int  # g - 1, [out_features]
    shift_offset: int  # [out_features]
    out_start: int  # its first column in the group's output
    out_features: int


AFFINE_SLICE_FIELDS = 4
AFFINE_FIELDS = 1 + MAX_SLICES * AFFINE_SLICE_FIELDS
AFFINE_ROW = RowFormat(AFFINE_FIELDS, tuple(range(1, AFFINE_FIELDS)), True, -1)


def affine_row(slices: Sequence[AffineSlice]) -> list[int]:
    """Slices as integers, for kernels: how many, then the fields of each, then 0s."""
    assert len(slices) <= MAX_SLICES
    row = [len(slices), *(field for part in slices for field in part)]
    return row + [0] * (AFFINE_FIELDS - len(row))


class AffineSegment(NamedTuple):
    """Tokens [start, end) of a batch whose adapter rescales or shifts projections of a group."""

    start: int
    end: int
    pages: PageRun
    slices: tuple[AffineSlice, ...]


class AffineGroup(list[AffineSegment]):
    """Segments of one projection group, and the same where a GPU's launches read it."""

    def __init__(self, segments: Sequence[AffineSegment], on_device: LoraGroup | None) -> None:
        super().__init__(segments)
        self.on_device = on_device


def lora_affine(
    y: torch.Tensor, layer_pages: torch.Tensor, segments: Sequence[AffineSegment] | LoraGroup
) -> None:
    """Rescales and shifts the base projection of each segment, in place.

    Semantics:
        for s in segments, p in s.slices:
            y[s.start:s.end, p.out] += scale[s, p] * y[s.start:s.end, p.out] + shift[s, p]

    y: [num_tokens, out_features] pool dtype; columns contiguous
    layer_pages: [num_pages, page_elems] pool dtype, contiguous: one layer of the pool
    segments: disjoint, in order of start; a LoraGroup's are read when the launch runs

    Raises: ValueError for shapes, dtypes or segments that do not fit together.
    """
    check_tensors(y, layer_pages)
    if uses_triton(y):
        from kernels.lora.triton_affine import affine

        group = _group_metadata(segments, y)
        check_launch(y, layer_pages, group.metadata)
        affine(y, layer_pages, group)
        return
    assert not isinstance(segments, LoraGroup)
    _check_segments(y, segments)
    for start, end, pages, slices in segments:
        for scale_offset, shift_offset, out_start, out_features in slices:
            part = y[start:end, out_start : out_start + out_features]
            if scale_offset >= 0:
                part.addcmul_(part, read_span(layer_pages, pages, scale_offset, 1, out_features))
            if shift_offset >= 0:
                part.add_(read_span(layer_pages, pages, shift_offset, 1, out_features))


def _group_metadata(segments: Sequence[AffineSegment] | LoraGroup, y: torch.Tensor) -> LoraGroup:
    if isinstance(segments, LoraGroup):
        return segments
    if isinstance(segments, AffineGroup) and segments.on_device is not None:
        return segments.on_device
    _check_segments(y, segments)
    spans = LoraSpans.of([s[:2] for s in segments], [s.pages for s in segments])
    rows = np.array([affine_row(s.slices) for s in segments], dtype=np.int64)
    rows = rows.reshape(1, 1, -1, AFFINE_FIELDS)
    return LoraBatchMetadata.of(spans, rows, y.device, AFFINE_ROW).group(0, 0)


def _check_segments(y: torch.Tensor, segments: Sequence[AffineSegment]) -> None:
    check_spans([each[:2] for each in segments], y.shape[0])
    for each in segments:
        for part in each.slices:
            if part.out_start < 0 or part.out_start + part.out_features > y.shape[1]:
                raise ValueError(f"{part} leaves the {y.shape[1]} output columns")
