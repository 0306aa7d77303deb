"""DoRA's rescaling and biases, y += scale * y + shift, of all segments in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.lora.bucket import TILE_FIELDS
from kernels.lora.extras import AFFINE_SLICE_FIELDS
from kernels.lora.metadata import METADATA_ARGUMENTS, LoraGroup
from kernels.lora.plan import MAX_SLICES
from kernels.lora.triton_paging import aligned, paged_tile, slice_of_block
from kernels.lora.tuning import tile_width


@triton.jit(do_not_specialize=["row_stride"], do_not_specialize_on_alignment=METADATA_ARGUMENTS)
def affine_kernel(
    y,
    pages,
    tiles,
    page_indptr,
    page_ids,
    plans,
    row_stride,
    y_stride,
    TILE_FIELDS: tl.constexpr,
    SLICE_FIELDS: tl.constexpr,
    PAGE_ELEMS: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Grid: (tiles of tokens, blocks of output columns over all projections of the group).

    One program: BLOCK_OUT columns of one projection for one tile of one segment's tokens, rounded
    once. A vector that the adapter has not is not read.
    """
    segment = tl.load(tiles + tl.program_id(0) * TILE_FIELDS)
    if segment < 0:
        return
    slices = plans + segment * row_stride + 1
    index, out_begin, out_features = slice_of_block(  # pyright: ignore[reportGeneralTypeIssues]
        tl.program_id(1),
        tl.load(slices + 3),
        tl.load(slices + SLICE_FIELDS + 3),
        tl.load(slices + 2 * SLICE_FIELDS + 3),
        BLOCK_OUT,
    )
    if out_begin >= out_features:
        return
    part = slices + index * SLICE_FIELDS
    scale_offset = tl.load(part)
    shift_offset = tl.load(part + 1)
    out_start = aligned(tl.load(part + 2), ALIGN)
    out_features = aligned(out_features, ALIGN)
    ids = page_ids + tl.load(page_indptr + segment)
    token_begin = tl.load(tiles + tl.program_id(0) * TILE_FIELDS + 1).to(tl.int64)
    num_tokens = tl.load(tiles + tl.program_id(0) * TILE_FIELDS + 2)

    columns = out_begin + tl.arange(0, BLOCK_OUT)
    inside = columns < out_features
    length = out_features - out_begin
    row = tl.arange(0, 1)
    has_scale = row + scale_offset >= 0
    at = paged_tile(
        ids, row + scale_offset + out_begin, has_scale, length, PAGE_ELEMS, BLOCK_OUT, ALIGN
    )
    scale = tl.load(pages + at, mask=has_scale[:, None] & inside[None, :], other=0.0)  # [1, N]
    has_shift = row + shift_offset >= 0
    at = paged_tile(
        ids, row + shift_offset + out_begin, has_shift, length, PAGE_ELEMS, BLOCK_OUT, ALIGN
    )
    shift = tl.load(pages + at, mask=has_shift[:, None] & inside[None, :], other=0.0)  # [1, N]

    tokens = tl.arange(0, BLOCK_TOKENS)
    at_y = (token_begin + tokens)[:, None] * y_stride + (out_start + columns)[None, :]
    stored = (tokens < num_tokens)[:, None] & inside[None, :]
    base = tl.load(y + at_y, mask=stored)  # [T, N]
    wide = base.to(tl.float32)
    wide += scale.to(tl.float32) * wide + shift.to(tl.float32)
    tl.store(y + at_y, wide.to(base.dtype), mask=stored)


def affine(y: torch.Tensor, layer_pages: torch.Tensor, group: LoraGroup) -> None:
    """group: of metadata whose rows are those of `kernels.lora.extras.affine_row`."""
    metadata = group.metadata
    tile = metadata.regime.affine
    page_elems = layer_pages.shape[1]
    align = metadata.alignment_for(0, y.element_size(), page_elems)
    block_out = tile_width(tile.block_out, y.element_size(), page_elems, align)
    num_blocks = -(-y.shape[1] // block_out) + MAX_SLICES - 1
    launch: Any = affine_kernel[metadata.num_tiles, num_blocks]
    launch(
        y,
        layer_pages,
        metadata.tiles,
        metadata.page_indptr,
        metadata.page_ids,
        group.rows,
        group.rows.stride(0),
        y.stride(0),
        TILE_FIELDS=TILE_FIELDS,
        SLICE_FIELDS=AFFINE_SLICE_FIELDS,
        PAGE_ELEMS=page_elems,
        ALIGN=align,
        BLOCK_TOKENS=metadata.regime.block_tokens,
        BLOCK_OUT=block_out,
        num_warps=tile.num_warps,
        num_stages=1,
    )
