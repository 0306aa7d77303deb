"""What the LoRA ops check before they touch memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kernels.lora.metadata import LoraBatchMetadata
    from kernels.lora.plan import Segment, SegmentGroup

_MIN_PAGE_ELEMS = 16  # the narrowest tile of a product on tensor cores
_MAX_ADAPTER_ELEMS = 2**31  # offsets are 32-bit


def check_tensors(rows: torch.Tensor, layer_pages: torch.Tensor) -> None:
    """rows: x or y. Raises: ValueError."""
    if rows.dtype != layer_pages.dtype:
        raise ValueError(f"dtypes differ: tokens {rows.dtype}, pages {layer_pages.dtype}")
    if rows.dim() != 2 or rows.stride(1) != 1:
        raise ValueError(f"{tuple(rows.shape)} is not [num_tokens, features], columns contiguous")
    if layer_pages.dim() != 2 or not layer_pages.is_contiguous():
        raise ValueError("layer_pages is not a contiguous [num_pages, page_elems]")


def check_spans(spans: Sequence[tuple[int, int]], num_tokens: int) -> None:
    """Raises: ValueError unless spans are disjoint, in order, not empty and within the tokens."""
    previous = 0
    for start, end in spans:
        if not previous <= start < end <= num_tokens:
            raise ValueError(f"segment [{start}, {end}) overlaps or leaves the batch")
        previous = end


def check_segments(
    segments: Sequence[Segment], num_tokens: int, in_features: int | None = None
) -> None:
    """Raises: ValueError as check_spans, or for an adapter that takes other inputs."""
    check_spans([each[:2] for each in segments], num_tokens)
    for each in segments:
        if in_features not in (None, each.plan.in_features):
            raise ValueError(f"x has {in_features} features, the adapter {each.plan.in_features}")


def check_group(group: SegmentGroup, num_tokens: int, in_features: int) -> None:
    """As check_segments, without taking the segments apart."""
    check_spans(group.common.spans.tolist(), num_tokens)
    for plan in group.group_plans:
        if plan is not None and plan.in_features != in_features:
            raise ValueError(f"x has {in_features} features, the adapter {plan.in_features}")


def check_launch(
    rows: torch.Tensor, layer_pages: torch.Tensor, metadata: LoraBatchMetadata
) -> None:
    """What a kernel relies on, as far as the host knows it. Raises: ValueError."""
    check_tensors(rows, layer_pages)
    page_elems = layer_pages.shape[1]
    if metadata.num_tokens > rows.shape[0]:
        raise ValueError(f"segments of {metadata.num_tokens} tokens leave a batch of {len(rows)}")
    if page_elems < _MIN_PAGE_ELEMS:
        raise ValueError(f"page_elems is {page_elems}: use pages of at least {_MIN_PAGE_ELEMS}")
    if metadata.max_adapter_pages * page_elems >= _MAX_ADAPTER_ELEMS:
        raise ValueError(
            f"an adapter of {metadata.max_adapter_pages} pages of {page_elems} elements has"
            f" {_MAX_ADAPTER_ELEMS} or more in a layer"
        )
