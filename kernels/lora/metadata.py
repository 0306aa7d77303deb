"""What the Triton kernels read of a step: its segments as integers on the device.

Kernels take one shape of arguments however many segments, adapters and ranks a step has, and a grid
that depends on a bucket only, so that a captured launch can be replayed for another step after
`LoraBatchMetadata.fill`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels.gpu.dispatch import uses_triton
from kernels.lora.bucket import (
    TILE_FIELDS,
    AdapterRows,
    LoraBucket,
    LoraRows,
    adapter_rows,
    max_tiles,
    tile_map,
)
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
from kernels.lora.tuning import Regime, lora_tiles

METADATA_ARGUMENTS = ["tiles", "page_indptr", "page_ids", "plans"]
"""Of every kernel. Where in the buffer they begin differs from step to step, and no kernel may be
compiled anew for that."""
_RANK_STEP = 16  # rows of h are whole vectors


@dataclass(frozen=True)
class LoraGroup:
    """One projection group in one layer."""

    metadata: LoraBatchMetadata
    rows: torch.Tensor  # [max_segments, num_fields] int32, device; rows stride(0) apart


@dataclass(frozen=True)
class _Step:
    """What the buffer holds. Kept whole: an object that lives cannot be mistaken for another."""

    spans: LoraSpans
    adapters: tuple[AdapterRows, ...]
    block_tokens: int

    def is_same(self, spans: LoraSpans, adapters: Sequence[AdapterRows], block_tokens: int) -> bool:
        return (
            self.block_tokens == block_tokens
            and len(self.adapters) == len(adapters)
            and all(map(_is, self.adapters, adapters))
            and all(map(_is, self.spans.runs, spans.runs))
            and np.array_equal(self.spans.spans, spans.spans)
        )


def _is(one: object, other: object) -> bool:
    return one is other


class LoraBatchMetadata:
    """One buffer on the device, overwritten by `fill`: no allocation, at most one copy."""

    def __init__(
        self,
        bucket: LoraBucket,
        num_layers: int,
        num_groups: int,
        device: torch.device,
        row_format: RowFormat = PLAN_ROW,
        *,
        regime: Regime | None = None,
    ) -> None:
        """regime: how launches cut segments, if not by the longest of the bucket."""
        self.row_format = row_format
        self.bucket = bucket
        self.regime = regime or lora_tiles(device).regime(bucket.max_segment_tokens)
        self.num_tiles = max_tiles(bucket, self.regime.block_tokens)
        self.max_total_rank = _whole(bucket.max_total_rank)
        self.is_of_experts = False
        self.num_tokens = 0
        self.max_adapter_pages = 0
        self._num_groups = num_groups
        # Rows last, and one adapter's in one piece: those of a step are a prefix of them.
        self._row_ints = num_layers * num_groups * row_format.num_fields
        head = (self.num_tiles * TILE_FIELDS, bucket.max_segments, bucket.max_pages)
        self._starts = np.cumsum(head).tolist()
        sizes = (*head, bucket.max_segments * self._row_ints)
        self._buffer = torch.full((sum(sizes),), -1, dtype=torch.int32, device=device)
        host_tiles, self.page_indptr, self.page_ids, rows = self._buffer.split(sizes)
        # [num_tiles, TILE_FIELDS]: segment (-1: nothing to do), first token, tokens, expert
        self.tiles = host_tiles.view(self.num_tiles, TILE_FIELDS)
        by_group = rows.view(bucket.max_segments, num_layers * num_groups, row_format.num_fields)
        self._rows = by_group.unbind(1)
        self._step: _Step | None = None

    @staticmethod
    def of(
        spans: LoraSpans,
        rows: LoraRows,
        device: torch.device,
        row_format: RowFormat = PLAN_ROW,
    ) -> LoraBatchMetadata:
        """For one eager step. rows: as `fill` takes them."""
        adapters = adapter_rows(rows, row_format)
        shape = rows.shape if isinstance(rows, np.ndarray) else adapters[0].rows.shape
        num_layers, num_groups = shape[:2]
        bucket = LoraBucket.of(spans, adapters)
        made = LoraBatchMetadata(bucket, num_layers, num_groups, device, row_format)
        made._send(made._stage(spans, adapters, made.regime.block_tokens))
        return made

    @staticmethod
    def where_read(
        spans: LoraSpans,
        rows: LoraRows,
        tensor: torch.Tensor,
        row_format: RowFormat = PLAN_ROW,
    ) -> LoraBatchMetadata | None:
        """As `of`, for launches on the device of `tensor`; None where kernels read the host's."""
        if not uses_triton(tensor):
            return None
        return LoraBatchMetadata.of(spans, rows, tensor.device, row_format)

    def fill(self, spans: LoraSpans, rows: LoraRows) -> None:
        """Takes over a step, by one copy on the current stream that the host does not wait for;
        by none when the buffer holds it already.

        rows: of `plan_row` or `affine_row`, for each of the spans.
        What is 0 as a whole costs its programs no more than finding that out.
        Raises: ValueError when spans overlap, or when the step does not fit in the bucket.
        """
        self.prepare(spans, rows)()

    def prepare(
        self, spans: LoraSpans, rows: LoraRows, block_tokens: int | None = None
    ) -> Callable[[], None]:
        """The host's part of `fill`; what it returns is the stream's part. Steps must be sent in
        the order in which they were prepared, all of them.

        block_tokens: of the regime of the `narrowed` that is launched, if that has one of its own.
        """
        adapters = adapter_rows(rows, self.row_format)
        block_tokens = block_tokens or self.regime.block_tokens
        if self._step is not None and self._step.is_same(spans, adapters, block_tokens):
            return _nothing
        needs = LoraBucket.of(spans, adapters)
        for name, need, has in zip(LoraBucket._fields, needs, self.bucket, strict=True):
            if need % has if name == "alignment" else need > has:
                raise ValueError(f"the step's {name} is {need}, the bucket's {has}")
        check_spans(spans.spans.tolist(), needs.max_tokens)
        staged = self._stage(spans, adapters, block_tokens)
        return lambda: self._send(staged)

    def narrowed(
        self,
        max_tokens: int,
        max_total_rank: int,
        max_segments: int | None = None,
        regime: Regime | None = None,
    ) -> LoraBatchMetadata:
        """The same buffer read by a smaller grid, or in another regime: for steps of so many
        tokens, each a segment or not unless max_segments says how many there are, and such ranks.
        It is filled through this one."""
        narrow = object.__new__(LoraBatchMetadata)
        narrow.__dict__.update(self.__dict__)
        narrow.regime = regime or self.regime
        narrow.bucket = self.bucket._replace(
            max_tokens=max_tokens,
            max_segments=min(max_segments or max_tokens, self.bucket.max_segments),
            max_total_rank=max_total_rank,
        )
        narrow.num_tiles = max_tiles(narrow.bucket, narrow.regime.block_tokens)
        narrow.tiles = self.tiles[: narrow.num_tiles]
        narrow.max_total_rank = _whole(max_total_rank)
        return narrow

    def over(self, tiles: torch.Tensor, regime: Regime) -> LoraBatchMetadata:
        """The same adapters, over other rows than tokens, of experts: for launches only. tiles:
        [num_tiles, TILE_FIELDS] int32, on the device, which launches find there when they run."""
        made = object.__new__(LoraBatchMetadata)
        made.__dict__.update(self.__dict__)
        made.tiles, made.num_tiles, made.regime = tiles, len(tiles), regime
        made.is_of_experts = True
        return made

    def _stage(
        self, spans: LoraSpans, adapters: Sequence[AdapterRows], block_tokens: int
    ) -> torch.Tensor:
        """What `_send` copies: the buffer up to the step's last row, on the host."""
        tiles = tile_map(spans.spans, block_tokens)
        num_segments = len(adapters)
        numel = self._starts[-1] + num_segments * self._row_ints
        # Pinned memory comes from torch's cache, which keeps it until the copy has been made.
        staging = torch.empty(numel, dtype=torch.int32, pin_memory=self._buffer.is_cuda)
        host_tiles, indptr, page_ids, rows = np.split(staging.numpy(), self._starts)
        host_tiles[: tiles.size] = tiles.reshape(-1)
        host_tiles[tiles.size :] = -1
        indptr[:num_segments] = spans.page_indptr[:-1]
        indptr[num_segments:] = 0
        page_ids[: len(spans.page_ids)] = spans.page_ids
        page_ids[len(spans.page_ids) :] = 0
        if adapters:
            wide = rows.reshape(num_segments, self._row_ints)
            np.stack([each.rows.reshape(-1) for each in adapters], out=wide)
        self._step = _Step(spans, tuple(adapters), block_tokens)
        self.num_tokens = int(spans.spans[:, 1].max(initial=0))
        self.max_adapter_pages = int(np.diff(spans.page_indptr).max(initial=0))
        return staging

    def _send(self, staged: torch.Tensor) -> None:
        self._buffer[: len(staged)].copy_(staged, non_blocking=True)

    def group(self, layer: int, index: int) -> LoraGroup:
        """Stays valid over later fills."""
        return LoraGroup(self, self._rows[layer * self._num_groups + index])

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
        spans, rows = segments.common, segments.plans
    else:
        check_segments(segments, len(tokens), in_features)
        spans = LoraSpans.of([s[:2] for s in segments], [s.pages for s in segments])
        rows = np.array([plan_row(s.plan) for s in segments], dtype=np.int64)
        rows = rows.reshape(-1, PLAN_FIELDS)
    return LoraBatchMetadata.of(spans, rows[None, None], tokens.device).group(0, 0)


def _whole(total_rank: int) -> int:
    return -(-total_rank // _RANK_STEP) * _RANK_STEP


def _nothing() -> None:
    pass
