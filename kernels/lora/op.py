"""LoRA of a heterogeneous batch: checks, then the implementation for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.lora import cpu
from kernels.lora.naive import lora_expand, lora_shrink
from kernels.lora.plan import Segment, SegmentGroup

__all__ = ["lora_apply", "lora_expand", "lora_shrink"]


def lora_apply(
    y: torch.Tensor, x: torch.Tensor, layer_pages: torch.Tensor, segments: Sequence[Segment]
) -> None:
    """Adds each segment's adapter to the base projection, in place.

    Semantics:
        for s in segments:
            y[s.start:s.end] += (x[s.start:s.end] @ A[s].T) @ (scaling * B[s].T)
        Tokens outside every segment are base-only and cost nothing.

    y: [num_tokens, out_features] pool dtype; rows contiguous; not aliased by x
    x: [num_tokens, in_features] pool dtype; rows contiguous
    layer_pages: [num_pages, page_elems] pool dtype, contiguous: one layer of the pool
    segments: disjoint, in order of start

    Raises: ValueError for shapes, dtypes or segments that do not fit together.
    """
    if isinstance(segments, SegmentGroup) and cpu.supports(x):
        cpu.lora_apply(y, x, layer_pages, segments)
        return
    if not segments:
        return
    _check(y, x, layer_pages, segments)
    lora_expand(y, lora_shrink(x, layer_pages, segments), layer_pages, segments)


def _check(
    y: torch.Tensor, x: torch.Tensor, layer_pages: torch.Tensor, segments: Sequence[Segment]
) -> None:
    if not (y.dtype == x.dtype == layer_pages.dtype):
        raise ValueError(f"dtypes differ: y {y.dtype}, x {x.dtype}, pages {layer_pages.dtype}")
    if y.dim() != 2 or x.dim() != 2 or y.shape[0] != x.shape[0]:
        raise ValueError(f"y {tuple(y.shape)} and x {tuple(x.shape)} are not [num_tokens, …]")
    if layer_pages.dim() != 2 or not layer_pages.is_contiguous():
        raise ValueError("layer_pages is not a contiguous [num_pages, page_elems]")
    previous = 0
    for start, end, _, plan in segments:
        if not previous <= start < end <= x.shape[0]:
            raise ValueError(f"segment [{start}, {end}) overlaps or leaves the batch")
        if plan.in_features != x.shape[1]:
            raise ValueError(f"x has {x.shape[1]} features, the adapter {plan.in_features}")
        previous = end
