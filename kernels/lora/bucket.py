"""What launches over segments are sized by, and how segments are cut into tiles: on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels.lora.plan import LoraSpans, RowFormat

TILE_FIELDS = 4
_MAX_ALIGNMENT = 8  # 16 bytes of 2-byte elements: the widest load of a thread


class AdapterRows(NamedTuple):
    """One adapter's rows, in all layers and groups, and what a bucket must know of them. Made once
    for an adapter: steps only put those of their adapters side by side."""

    rows: np.ndarray[Any, Any]  # [num_layers, num_groups, num_fields] int32, contiguous
    alignment: int  # all offsets and columns are multiples of it: 1 or 8
    max_total_rank: int  # of any group
    max_rank: int  # of any projection

    @staticmethod
    def of(rows: np.ndarray[Any, Any], row_format: RowFormat) -> AdapterRows:
        """rows: [num_layers, num_groups, num_fields], of `plan_row` or `affine_row`."""
        rank_field = row_format.rank_field
        return AdapterRows(
            np.ascontiguousarray(rows, dtype=np.int32),
            row_alignment(rows[:, :, None], row_format),
            int(rows[..., rank_field].max(initial=0)) if rank_field >= 0 else 0,
            int(rows[..., list(row_format.rank_fields)].max(initial=0)),
        )


LoraRows = Sequence[AdapterRows] | np.ndarray[Any, Any]
"""The rows of a step's adapters, in the order of its spans. As an array:
[num_layers, num_groups, n, num_fields]."""


def adapter_rows(rows: LoraRows, row_format: RowFormat) -> Sequence[AdapterRows]:
    if not isinstance(rows, np.ndarray):
        return rows
    return [AdapterRows.of(rows[:, :, at], row_format) for at in range(rows.shape[2])]


class LoraBucket(NamedTuple):
    """What a step must fit in to be served by one grid."""

    max_tokens: int
    max_segments: int
    max_pages: int  # of all the step's adapters together
    max_total_rank: int  # of any adapter in any group
    max_segment_tokens: int
    alignment: int  # all offsets in adapters' pages are multiples of it: 1 or 8

    @staticmethod
    def of(spans: LoraSpans, adapters: Sequence[AdapterRows]) -> LoraBucket:
        """The bucket that holds exactly this."""
        return LoraBucket(
            max_tokens=int(spans.spans[:, 1].max(initial=0)),
            max_segments=len(spans.spans),
            max_pages=len(spans.page_ids),
            max_total_rank=max((each.max_total_rank for each in adapters), default=0),
            max_segment_tokens=spans.max_tokens,
            alignment=min((each.alignment for each in adapters), default=_MAX_ALIGNMENT),
        )


def max_tiles(bucket: LoraBucket, block_tokens: int) -> int:
    """The most tiles that any step of the bucket cuts its segments into."""
    # A segment's first token takes a tile, and of its others every block_tokens another one.
    most = max(0, bucket.max_tokens - bucket.max_segments) // block_tokens
    return min(bucket.max_tokens, bucket.max_segments + most)


def tile_map(spans: np.ndarray[Any, Any], block_tokens: int) -> np.ndarray[Any, Any]:
    """[num_tiles, TILE_FIELDS]: segments cut into at most block_tokens tokens each, in order. The
    last field, an expert, is 0."""
    starts, ends = spans[:, 0], spans[:, 1]
    counts = -(-(ends - starts) // block_tokens)
    segment = np.repeat(np.arange(len(spans)), counts)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = starts[segment] + within * block_tokens
    counts = np.minimum(block_tokens, ends[segment] - first)
    return np.stack([segment, first, counts, np.zeros_like(first)], axis=1)


def row_alignment(rows: np.ndarray[Any, Any], row_format: RowFormat) -> int:
    """8 when all offsets and columns in these rows are multiples of 8, else 1.

    rows: [num_layers, num_groups, n, num_fields]
    """
    if not rows.size:
        return _MAX_ALIGNMENT
    present = np.maximum(rows, 0) if row_format.optional else rows
    bits = np.bitwise_or.reduce(present.reshape(-1, row_format.num_fields), axis=0)
    aligned = not (bits[list(row_format.positions)] % _MAX_ALIGNMENT).any()
    return _MAX_ALIGNMENT if aligned else 1
