"""LoRA of a heterogeneous batch: checks, then the implementation for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.gpu.dispatch import uses_triton
from kernels.lora import cpu, naive
from kernels.lora.checks import check_group, check_launch, check_segments, check_tensors
from kernels.lora.metadata import LoraGroup, group_metadata
from kernels.lora.plan import Segment, SegmentGroup
from kernels.lora.read_back import segments_of

__all__ = [
    "LoraHidden",
    "LoraSegments",
    "lora_apply",
    "lora_expand",
    "lora_shrink",
]

LoraSegments = Sequence[Segment] | LoraGroup
"""Segments of one projection group, disjoint and in order of start. A LoraGroup's are read from the
device when the launch runs, so that a captured launch serves later steps too."""

LoraHidden = list[torch.Tensor] | torch.Tensor
"""h, as lora_shrink hands it to lora_expand: on CPU one matrix per segment, on a GPU
[parts, num_tokens, ranks] float32, whose parts are added up when read."""


def lora_apply(
    y: torch.Tensor, x: torch.Tensor, layer_pages: torch.Tensor, segments: LoraSegments
) -> None:
    """Adds each segment's adapter to the base projection, in place.

    Semantics:
        for s in segments:
            y[s.start:s.end] += (x[s.start:s.end] @ A[s].T) @ (scaling * B[s].T)
        Tokens outside every segment are base-only and cost nothing.

    y: [num_tokens, out_features] pool dtype; columns contiguous; not aliased by x
    x: [num_tokens, in_features] pool dtype; columns contiguous
    layer_pages: [num_pages, page_elems] pool dtype, contiguous: one layer of the pool

    Raises: ValueError for shapes, dtypes or segments that do not fit together.
    """
    if y.dim() != 2 or x.dim() != 2 or y.shape[0] != x.shape[0]:
        raise ValueError(f"y {tuple(y.shape)} and x {tuple(x.shape)} are not [num_tokens, …]")
    if uses_triton(x):
        segments = group_metadata(segments, x, x.shape[1])
    elif isinstance(segments, LoraGroup):
        segments = segments_of(segments, x.shape[1])
    elif isinstance(segments, SegmentGroup) and cpu.supports(x):
        check_tensors(x, layer_pages)
        check_tensors(y, layer_pages)
        check_group(segments, x.shape[0], x.shape[1])
        cpu.lora_apply(y, x, layer_pages, segments)
        return
    lora_expand(y, lora_shrink(x, layer_pages, segments), layer_pages, segments)


def lora_shrink(
    x: torch.Tensor,
    layer_pages: torch.Tensor,
    segments: LoraSegments,
    hidden: LoraHidden | None = None,
) -> LoraHidden:
    """Semantics, for each segment s:
        h[s] = x[s.start:s.end] @ A[s].T, plus `hidden`'s h[s] where given

    x, layer_pages: as in lora_apply.
    hidden: of the same segments over other columns of the input, the widest first; it is updated in
        place and returned.

    Raises: ValueError as lora_apply.
    """
    if uses_triton(x):
        from kernels.lora.triton_shrink import shrink

        group = group_metadata(segments, x, x.shape[1])
        check_launch(x, layer_pages, group.metadata)
        assert not isinstance(hidden, list)
        return shrink(x, layer_pages, group, hidden)
    assert not isinstance(segments, LoraGroup) and not isinstance(hidden, torch.Tensor)
    check_tensors(x, layer_pages)
    check_segments(segments, x.shape[0], x.shape[1])
    parts = naive.lora_shrink(x, layer_pages, segments)
    if hidden is None:
        return parts
    for total, part in zip(hidden, parts, strict=True):
        total += part
    return hidden


def lora_expand(
    y: torch.Tensor, hidden: LoraHidden, layer_pages: torch.Tensor, segments: LoraSegments
) -> None:
    """Semantics, for each segment s and projection p of it, in place:
        y[s.start:s.end, p.out] += h[s][:, p.ranks] @ (scaling * B[s, p].T)

    y, layer_pages: as in lora_apply. hidden: lora_shrink's, of the same segments.

    Raises: ValueError as lora_apply.
    """
    if isinstance(hidden, torch.Tensor):
        from kernels.lora.triton_expand import expand

        group = group_metadata(segments, y)
        check_launch(y, layer_pages, group.metadata)
        expand(y, hidden, layer_pages, group)
        return
    assert not isinstance(segments, LoraGroup)
    check_tensors(y, layer_pages)
    check_segments(segments, y.shape[0])
    naive.lora_expand(y, hidden, layer_pages, segments)
