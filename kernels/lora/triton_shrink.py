"""Shrink, h = x @ A.T, of all segments of a batch in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.lora.bucket import TILE_FIELDS
from kernels.lora.metadata import METADATA_ARGUMENTS, LoraGroup
from kernels.lora.plan import PLAN_EXPERT_ELEMS
from kernels.lora.triton_paging import paged_tile
from kernels.lora.tuning import tile_width


@triton.jit(do_not_specialize=["row_stride"], do_not_specialize_on_alignment=METADATA_ARGUMENTS)
def shrink_kernel(
    hidden,
    x,
    pages,
    tiles,
    page_indptr,
    page_ids,
    plans,
    row_stride,
    in_features,
    x_stride,
    hidden_stride,
    split_stride,
    TILE_FIELDS: tl.constexpr,
    EXPERT_FIELD: tl.constexpr,
    PAGE_ELEMS: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_PER_SPLIT: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Grid: (tiles of tokens, blocks of ranks, splits of in_features).

    One program: its split's part of h for one tile of one segment's tokens and BLOCK_RANK of its
    ranks, in float32. A tile of one token is a product with a vector, bound by the reading of A;
    others go through tl.dot. Splits are stored apart and added up in order by who reads h, so that
    results do not depend on timing. EXPERT_FIELD: of a plan's row, how far experts are apart, -1
    where there are none; a tile is of one expert, too. Programs past a segment's ranks, and empty
    tiles, end at once.
    """
    segment = tl.load(tiles + tl.program_id(0) * TILE_FIELDS)
    if segment < 0:
        return
    total_rank = tl.load(plans + segment * row_stride)
    rank_begin = tl.program_id(1) * BLOCK_RANK
    if rank_begin >= total_rank:
        return
    token_begin = tl.load(tiles + tl.program_id(0) * TILE_FIELDS + 1).to(tl.int64)
    num_tokens = tl.load(tiles + tl.program_id(0) * TILE_FIELDS + 2)
    a_offset = tl.load(plans + segment * row_stride + 1)
    if EXPERT_FIELD >= 0:
        expert = tl.load(tiles + tl.program_id(0) * TILE_FIELDS + 3)
        a_offset += expert * tl.load(plans + segment * row_stride + EXPERT_FIELD)
    ids = page_ids + tl.load(page_indptr + segment)

    ranks = rank_begin + tl.arange(0, BLOCK_RANK)
    wanted = ranks < total_rank
    a_rows = a_offset + ranks * in_features
    columns = tl.arange(0, BLOCK_K)
    k_begin = tl.program_id(2) * K_PER_SPLIT
    k_end = tl.minimum(k_begin + K_PER_SPLIT, in_features)
    hidden += tl.program_id(2).to(tl.int64) * split_stride + token_begin * hidden_stride
    if num_tokens == 1:
        x += token_begin * x_stride
        products = tl.zeros([BLOCK_RANK, BLOCK_K], dtype=tl.float32)
        for k in range(k_begin, k_end, BLOCK_K):
            inside = k + columns < in_features
            at = paged_tile(ids, a_rows + k, wanted, in_features - k, PAGE_ELEMS, BLOCK_K, ALIGN)
            a = tl.load(pages + at, mask=wanted[:, None] & inside[None, :], other=0.0)  # [R, K]
            x_k = tl.load(x + k + columns, mask=inside, other=0.0)  # [K]
            products += a.to(tl.float32) * x_k.to(tl.float32)[None, :]
        h = tl.sum(products, axis=1)  # [R]
        if ACCUMULATE:
            h += tl.load(hidden + ranks, mask=wanted, other=0.0)
        tl.store(hidden + ranks, h, mask=wanted)
    else:
        tokens = tl.arange(0, BLOCK_TOKENS)
        present = tokens < num_tokens
        x_rows = (token_begin + tokens) * x_stride
        total = tl.zeros([BLOCK_TOKENS, BLOCK_RANK], dtype=tl.float32)
        for k in range(k_begin, k_end, BLOCK_K):
            inside = k + columns < in_features
            at = paged_tile(ids, a_rows + k, wanted, in_features - k, PAGE_ELEMS, BLOCK_K, ALIGN)
            a = tl.load(pages + at, mask=wanted[:, None] & inside[None, :], other=0.0)  # [R, K]
            x_k = tl.load(
                x + x_rows[:, None] + (k + columns)[None, :],
                mask=present[:, None] & inside[None, :],
                other=0.0,
            )  # [T, K]
            total = tl.dot(x_k, tl.trans(a), total, input_precision="ieee")
        at_h = tokens[:, None] * hidden_stride + ranks[None, :]
        stored = present[:, None] & wanted[None, :]
        if ACCUMULATE:
            total += tl.load(hidden + at_h, mask=stored, other=0.0)
        tl.store(hidden + at_h, total, mask=stored)


def shrink(
    x: torch.Tensor,
    layer_pages: torch.Tensor,
    group: LoraGroup,
    hidden: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns h in parts that sum up to it: [num_splits, num_tokens, max_total_rank] float32.

    What no segment covers is left as it was allocated. hidden: h of other columns of the input,
    which is added to, and returned. out: `new_hidden`'s, written and returned.

    Raises: ValueError when `hidden` has fewer parts than this input needs.
    """
    metadata = group.metadata
    tile = metadata.regime.shrink
    num_tokens, in_features = x.shape
    page_elems = layer_pages.shape[1]
    align = metadata.alignment_for(in_features, x.element_size(), page_elems)
    block_k = tile_width(tile.block_k, x.element_size(), page_elems, align)
    num_splits = -(-in_features // tile.k_per_split)
    accumulate = hidden is not None
    if hidden is None:
        hidden = new_hidden(x, group) if out is None else out
    elif hidden.shape[0] < num_splits or hidden.shape[1] != num_tokens:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} cannot take {num_splits} parts of {num_tokens} tokens:"
            " shrink the widest part of the input first"
        )
    grid = (metadata.num_tiles, -(-metadata.max_total_rank // tile.block_rank), num_splits)
    launch: Any = shrink_kernel[grid]
    launch(
        hidden,
        x,
        layer_pages,
        metadata.tiles,
        metadata.page_indptr,
        metadata.page_ids,
        group.rows,
        group.rows.stride(0),
        in_features,
        x.stride(0),
        hidden.stride(1),
        hidden.stride(0),
        TILE_FIELDS=TILE_FIELDS,
        EXPERT_FIELD=PLAN_EXPERT_ELEMS if metadata.is_of_experts else -1,
        PAGE_ELEMS=page_elems,
        ALIGN=align,
        BLOCK_TOKENS=metadata.regime.block_tokens,
        BLOCK_RANK=tile.block_rank,
        BLOCK_K=block_k,
        K_PER_SPLIT=tile.k_per_split,
        ACCUMULATE=accumulate,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return hidden


def new_hidden(x: torch.Tensor, group: LoraGroup) -> torch.Tensor:
    """Memory for what `shrink` returns of these."""
    num_tokens, in_features = x.shape
    num_splits = -(-in_features // group.metadata.regime.shrink.k_per_split)
    shape = (num_splits, num_tokens, group.metadata.max_total_rank)
    return torch.empty(shape, dtype=torch.float32, device=x.device)
