"""Expand, y += h @ B, of all segments and projections of a batch in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.lora.bucket import TILE_FIELDS
from kernels.lora.metadata import METADATA_ARGUMENTS, LoraGroup
from kernels.lora.plan import MAX_SLICES, PLAN_EXPERT_ELEMS, PLAN_SLICE_FIELDS
from kernels.lora.triton_paging import aligned, paged_tile, slice_of_block
from kernels.lora.tuning import tile_width

SPLITS_AT_ONCE = 8


@triton.jit(
    do_not_specialize=["row_stride", "num_splits"],
    do_not_specialize_on_alignment=METADATA_ARGUMENTS,
)
def expand_kernel(
    y,
    hidden,
    pages,
    tiles,
    page_indptr,
    page_ids,
    plans,
    row_stride,
    num_splits,
    y_stride,
    hidden_stride,
    split_stride,
    TILE_FIELDS: tl.constexpr,
    EXPERT_FIELD: tl.constexpr,
    SLICE_FIELDS: tl.constexpr,
    PAGE_ELEMS: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (tiles of tokens, blocks of output columns over all projections of the group).

    One program: adds BLOCK_OUT columns of one projection for one tile of one segment's tokens,
    in float32, to y. h stays float32: a bfloat16 B is multiplied by h's upper and lower half,
    another by h in PRECISION. h's parts are read several at a time: one after the other, they would
    take longer than B. EXPERT_FIELD: as shrink's. Programs past a segment's projections, and empty
    tiles, end at once.
    """
    segment = tl.load(tiles + tl.program_id(0) * TILE_FIELDS)
    if segment < 0:
        return
    slices = plans + segment * row_stride + 3
    index, out_begin, out_features = slice_of_block(  # pyright: ignore[reportGeneralTypeIssues]
        tl.program_id(1),
        tl.load(slices + 4),
        tl.load(slices + SLICE_FIELDS + 4),
        tl.load(slices + 2 * SLICE_FIELDS + 4),
        BLOCK_OUT,
    )
    if out_begin >= out_features:
        return
    part = slices + index * SLICE_FIELDS
    rank_start = tl.load(part)
    rank = tl.load(part + 1)
    b_offset = tl.load(part + 2)
    if EXPERT_FIELD >= 0:
        expert = tl.load(tiles + tl.program_id(0) * TILE_FIELDS + 3)
        b_offset += expert * tl.load(plans + segment * row_stride + EXPERT_FIELD)
    out_start = aligned(tl.load(part + 3), ALIGN)
    out_features = aligned(out_features, ALIGN)
    ids = page_ids + tl.load(page_indptr + segment)
    token_begin = tl.load(tiles + tl.program_id(0) * TILE_FIELDS + 1).to(tl.int64)
    num_tokens = tl.load(tiles + tl.program_id(0) * TILE_FIELDS + 2)

    columns = out_begin + tl.arange(0, BLOCK_OUT)
    inside = columns < out_features
    length = out_features - out_begin
    y += token_begin * y_stride + out_start
    hidden += token_begin * hidden_stride + rank_start
    if num_tokens == 1:
        row = tl.zeros([BLOCK_OUT], dtype=tl.float32)
        for rank_begin in range(0, rank, BLOCK_RANK):
            ranks = rank_begin + tl.arange(0, BLOCK_RANK)
            wanted = ranks < rank
            rows = b_offset + ranks * out_features + out_begin
            at = paged_tile(ids, rows, wanted, length, PAGE_ELEMS, BLOCK_OUT, ALIGN)
            b = tl.load(pages + at, mask=wanted[:, None] & inside[None, :], other=0.0)  # [R, N]
            h = tl.zeros([BLOCK_RANK], dtype=tl.float32)
            for first in range(0, num_splits, SPLITS_AT_ONCE):
                for split in tl.static_range(SPLITS_AT_ONCE):  # pyright: ignore[reportGeneralTypeIssues]
                    there = ranks < tl.where(first + split < num_splits, rank, 0)
                    at_h = hidden + (first + split) * split_stride
                    h += tl.load(at_h + ranks, mask=there, other=0.0)
            row += tl.sum(b.to(tl.float32) * h[:, None], axis=0)
        base_row = tl.load(y + columns, mask=inside)
        tl.store(y + columns, (base_row.to(tl.float32) + row).to(base_row.dtype), mask=inside)
    else:
        tokens = tl.arange(0, BLOCK_TOKENS)
        present = tokens < num_tokens
        total = tl.zeros([BLOCK_TOKENS, BLOCK_OUT], dtype=tl.float32)
        for rank_begin in range(0, rank, BLOCK_RANK):
            ranks = rank_begin + tl.arange(0, BLOCK_RANK)
            wanted = ranks < rank
            rows = b_offset + ranks * out_features + out_begin
            at = paged_tile(ids, rows, wanted, length, PAGE_ELEMS, BLOCK_OUT, ALIGN)
            b = tl.load(pages + at, mask=wanted[:, None] & inside[None, :], other=0.0)  # [R, N]
            h = tl.zeros([BLOCK_TOKENS, BLOCK_RANK], dtype=tl.float32)
            at_h = hidden + tokens[:, None] * hidden_stride + ranks[None, :]
            for first in range(0, num_splits, SPLITS_AT_ONCE):
                for split in tl.static_range(SPLITS_AT_ONCE):  # pyright: ignore[reportGeneralTypeIssues]
                    there = ranks < tl.where(first + split < num_splits, rank, 0)
                    part_h = at_h + (first + split) * split_stride
                    h += tl.load(
                        part_h, mask=present[:, None] & there[None, :], other=0.0
                    )  # [T, R]
            if b.dtype == tl.bfloat16:
                upper = h.to(tl.bfloat16)
                lower = (h - upper.to(tl.float32)).to(tl.bfloat16)
                total = tl.dot(upper, b, total)
                total = tl.dot(lower, b, total)
            else:
                total = tl.dot(h, b.to(tl.float32), total, input_precision=PRECISION)
        at_y = tokens[:, None].to(tl.int64) * y_stride + columns[None, :]
        stored = present[:, None] & inside[None, :]
        base = tl.load(y + at_y, mask=stored)
        tl.store(y + at_y, (base.to(tl.float32) + total).to(base.dtype), mask=stored)


def dot_precision(dtype: torch.dtype, hip: bool) -> str:
    """Three TF32 products are exact for a float16 B and keep 21 bits of h; float32 is for parity
    and exact throughout. ROCm multiplies float32 natively."""
    return "tf32x3" if dtype == torch.float16 and not hip else "ieee"


def expand(
    y: torch.Tensor, hidden: torch.Tensor, layer_pages: torch.Tensor, group: LoraGroup
) -> None:
    """hidden: as `kernels.lora.triton_shrink.shrink` returns it for the same segments."""
    metadata = group.metadata
    tile = metadata.regime.expand
    out_features = y.shape[1]
    page_elems = layer_pages.shape[1]
    align = metadata.alignment_for(0, y.element_size(), page_elems)
    block_out = tile_width(tile.block_out, y.element_size(), page_elems, align)
    # As many as there can be: each projection's last block may be cut short.
    num_blocks = -(-out_features // block_out) + MAX_SLICES - 1
    launch: Any = expand_kernel[metadata.num_tiles, num_blocks]
    launch(
        y,
        hidden,
        layer_pages,
        metadata.tiles,
        metadata.page_indptr,
        metadata.page_ids,
        group.rows,
        group.rows.stride(0),
        hidden.shape[0],
        y.stride(0),
        hidden.stride(1),
        hidden.stride(0),
        TILE_FIELDS=TILE_FIELDS,
        EXPERT_FIELD=PLAN_EXPERT_ELEMS if metadata.is_of_experts else -1,
        SLICE_FIELDS=PLAN_SLICE_FIELDS,
        PAGE_ELEMS=page_elems,
        ALIGN=align,
        BLOCK_TOKENS=metadata.regime.block_tokens,
        BLOCK_RANK=tile.block_rank,
        BLOCK_OUT=block_out,
        SPLITS_AT_ONCE=SPLITS_AT_ONCE,
        PRECISION=dot_precision(y.dtype, torch.version.hip is not None),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
