"""What the Triton kernels read of a step: its segments as integers on the device.

Kernels take one shape of arguments however many segments, adapters and ranks a step has, and a grid
that depends on a bucket only, so that a captured launch can be replayed for another step after
`LoraBatchMetadata.fill`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels.gpu.dispatch import uses_triton
from kernels.lora.checks import check_segments, check_spans
from kernels.lora.plan import (
    PLAN_FIELDS,
    PLAN_ROW,
    LoraSpans,
    RowFormat,
    Segment,
    SegmentGroup,
    plan_row,
)
from kernels.lora.tuning import lora_tiles

TILE_FIELDS = 3
METADATA_ARGUMENTS = ["tiles", "page_indptr", "page_ids", "plans"]
"""Of every kernel. Where in the buffer they begin differs from step to step, and no kernel may be
compiled anew for that."""
_RANK_STEP = 16  # rows of h are whole vectors
_MAX_ALIGNMENT = 8  # 16 bytes of 2-byte elements: the widest load of a thread


class LoraBucket(NamedTuple):
    """What a step must fit in to be served by one grid."""

    max_tokens: int
    max_segments: int
    max_pages: int  # of all the step's adapters together
    max_total_rank: int  # of any adapter in any group
    max_segment_tokens: int
    alignment: int  # all offsets in adapters' pages are multiples of it: 1 or 8

    @staticmethod
    def of(spans: LoraSpans, rows: np.ndarray[Any, Any], row_format: RowFormat) -> LoraBucket:
        """The bucket that holds exactly this."""
        rank_field = row_format.rank_field
        return LoraBucket(
            max_tokens=int(spans.spans[:, 1].max(initial=0)),
            max_segments=len(spans.spans),
            max_pages=len(spans.page_ids),
            max_total_rank=int(rows[..., rank_field].max(initial=0)) if rank_field >= 0 else 0,
            max_segment_tokens=spans.max_tokens,
            alignment=row_alignment(rows, row_format),
        )


@dataclass(frozen=True)
class LoraGroup:
    """One projection group in one layer."""

    metadata: LoraBatchMetadata
    rows: torch.Tensor  # [max_segments, num_fields] int32, device


class LoraBatchMetadata:
    """One buffer on the device, overwritten as a whole by `fill`: no allocation, one copy."""

    def __init__(
        self,
        bucket: LoraBucket,
        num_layers: int,
        num_groups: int,
        device: torch.device,
        row_format: RowFormat = PLAN_ROW,
    ) -> None:
        self.row_format = row_format
        self.bucket = bucket
        self.regime = lora_tiles(device).regime(bucket.max_segment_tokens)
        self.num_tiles = max_tiles(bucket, self.regime.block_tokens)
        self.max_total_rank = -(-bucket.max_total_rank // _RANK_STEP) * _RANK_STEP
        self.num_tokens = 0
        self.max_adapter_pages = 0
        self._sizes = (
            self.num_tiles * TILE_FIELDS,
            bucket.max_segments,
            bucket.max_pages,
            num_layers * num_groups * bucket.max_segments * row_format.num_fields,
        )
        self._rows_shape = (num_layers, num_groups, bucket.max_segments, row_format.num_fields)
        self._buffer = torch.full((sum(self._sizes),), -1, dtype=torch.int32, device=device)
        tiles, self.page_indptr, self.page_ids, rows = self._buffer.split(self._sizes)
        # [num_tiles, TILE_FIELDS]: segment (-1: nothing to do), first token, number of tokens
        self.tiles = tiles.view(self.num_tiles, TILE_FIELDS)
        self._rows = rows.view(self._rows_shape)

    @staticmethod
    def of(
        spans: LoraSpans,
        rows: np.ndarray[Any, Any],
        device: torch.device,
        row_format: RowFormat = PLAN_ROW,
    ) -> LoraBatchMetadata:
        """For one eager step. rows: as `fill` takes them."""
        bucket = LoraBucket.of(spans, rows, row_format)
        made = LoraBatchMetadata(bucket, rows.shape[0], rows.shape[1], device, row_format)
        made._fill(spans, rows)
        return made

    @staticmethod
    def where_read(
        spans: LoraSpans,
        rows: np.ndarray[Any, Any],
        tensor: torch.Tensor,
        row_format: RowFormat = PLAN_ROW,
    ) -> LoraBatchMetadata | None:
        """As `of`, for launches on the device of `tensor`; None where kernels read the host's."""
        if not uses_triton(tensor):
            return None
        return LoraBatchMetadata.of(spans, rows, tensor.device, row_format)

    def fill(self, spans: LoraSpans, rows: np.ndarray[Any, Any]) -> None:
        """Takes over a step, by one copy on the current stream that the host does not wait for.

        rows: [num_layers, num_groups, n, num_fields], of `plan_row` or `affine_row`; n spans.
        What is 0 as a whole costs its programs no more than finding that out.
        Raises: ValueError when spans overlap, or when the step does not fit in the bucket.
        """
        needs = LoraBucket.of(spans, rows, self.row_format)
        for name, need, has in zip(LoraBucket._fields, needs, self.bucket, strict=True):
            if need % has if name == "alignment" else need > has:
                raise ValueError(f"the step's {name} is {need}, the bucket's {has}")
        check_spans(spans.spans.tolist(), needs.max_tokens)
        self._fill(spans, rows)

    def _fill(self, spans: LoraSpans, rows: np.ndarray[Any, Any]) -> None:
        tiles = tile_map(spans.spans, self.regime.block_tokens)
        # Pinned memory comes from torch's cache, which keeps it until the copy has been made.
        staging = torch.empty(len(self._buffer), dtype=torch.int32, pin_memory=self._buffer.is_cuda)
        host = staging.numpy()
        host_tiles, indptr, page_ids, host_rows = np.split(host, np.cumsum(self._sizes)[:-1])
        host_tiles[: tiles.size] = tiles.reshape(-1)
        host_tiles[tiles.size :] = -1
        indptr[: len(spans.spans)] = spans.page_indptr[:-1]
        page_ids[: len(spans.page_ids)] = spans.page_ids
        host_rows.reshape(self._rows_shape)[:, :, : rows.shape[2]] = rows
        self._buffer.copy_(staging, non_blocking=True)
        self.num_tokens = int(spans.spans[:, 1].max(initial=0))
        self.max_adapter_pages = int(np.diff(spans.page_indptr).max(initial=0))

    def group(self, layer: int, index: int) -> LoraGroup:
        """Stays valid over later fills."""
        return LoraGroup(self, self._rows[layer, index])

    def alignment_for(self, features: int, itemsize: int, page_elems: int) -> int:
        """How many neighbouring elements may be read at once: 16 bytes, or single ones."""
        wide = 16 // itemsize
        aligned = not (self.bucket.alignment % wide or features % wide or page_elems % wide)
        return wide if aligned else 1


def group_metadata(
    segments: Sequence[Segment] | LoraGroup, tokens: torch.Tensor, in_features: int | None = None
) -> LoraGroup:
    """The segments as launches over `tokens` (x or y) read them. Unless the engine has made them
    for the step, this costs a copy to the device.

    in_features: what adapters must take.
    Raises: ValueError when segments overlap or leave the tokens, or take something else.
    """
    if isinstance(segments, LoraGroup):
        return segments
    if isinstance(segments, SegmentGroup):
        if segments.on_device is not None:
            return segments.on_device
        spans, rows = segments.common, segments.plans
    else:
        check_segments(segments, len(tokens), in_features)
        spans = LoraSpans.of([s[:2] for s in segments], [s.pages for s in segments])
        rows = np.array([plan_row(s.plan) for s in segments], dtype=np.int64)
        rows = rows.reshape(-1, PLAN_FIELDS)
    return LoraBatchMetadata.of(spans, rows[None, None], tokens.device).group(0, 0)


def max_tiles(bucket: LoraBucket, block_tokens: int) -> int:
    """The most tiles that any step of the bucket cuts its segments into."""
    return min(bucket.max_tokens, bucket.max_segments + bucket.max_tokens // block_tokens)


def tile_map(spans: np.ndarray[Any, Any], block_tokens: int) -> np.ndarray[Any, Any]:
    """[num_tiles, TILE_FIELDS]: segments cut into at most block_tokens tokens each, in order."""
    starts, ends = spans[:, 0], spans[:, 1]
    counts = -(-(ends - starts) // block_tokens)
    segment = np.repeat(np.arange(len(spans)), counts)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = starts[segment] + within * block_tokens
    return np.stack([segment, first, np.minimum(block_tokens, ends[segment] - first)], axis=1)


def row_alignment(rows: np.ndarray[Any, Any], row_format: RowFormat) -> int:
    """8 when all offsets and columns in these rows are multiples of 8, else 1."""
    if not rows.size:
        return _MAX_ALIGNMENT
    present = np.maximum(rows, 0) if row_format.optional else rows
    # Over layers and groups first: long rows reduce fast, and this is done every step.
    bits = np.bitwise_or.reduce(present.reshape(-1, rows.shape[2] * rows.shape[3]), axis=0)
    bits = np.bitwise_or.reduce(bits.reshape(-1, row_format.num_fields), axis=0)
    aligned = not (bits[list(row_format.positions)] % _MAX_ALIGNMENT).any()
    return _MAX_ALIGNMENT if aligned else 1
