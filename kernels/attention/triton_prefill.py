"""Chunked prefill over pages: all chunks of a batch in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.attention.metadata import RaggedPrefill
from kernels.attention.triton_scores import Scores, block_dim
from kernels.attention.triton_softmax import attend
from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import Settings, launch_options, tuned


@triton.jit(
    do_not_specialize=["num_seqs", "num_tiles", "table_stride", "window"],
    do_not_specialize_on_alignment=["indptr_ptr", "first_rows_ptr", "seq_lens_ptr", "tables_ptr"],
)
def prefill_kernel(
    q_ptr,
    kv_ptr,
    indptr_ptr,
    first_rows_ptr,
    seq_lens_ptr,
    tables_ptr,
    out_ptr,
    num_seqs,
    num_tiles,
    q_stride,
    out_stride,
    page_stride,
    table_stride,
    scale,
    cap,
    window,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """grid (tiles, key heads). One program: BLOCK_M // GROUP tokens of one chunk, the GROUP query
    heads of one key head each, as rows; over all keys that they see.

    Chunk s has the tiles from query_indptr[s] // tile_tokens + s on: at least as many as it needs,
    found without a map of tiles (as in vLLM's unified attention); those left over do nothing.
    """
    TILE_TOKENS: tl.constexpr = BLOCK_M // GROUP
    # Later tokens see more keys: what takes longest starts first.
    tile = num_tiles - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    low, high = 0, num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(indptr_ptr + middle) // TILE_TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    before = tl.load(indptr_ptr + low)
    num_tokens = tl.load(indptr_ptr + low + 1) - before
    offset = (tile - before // TILE_TOKENS - low) * TILE_TOKENS
    if offset >= num_tokens:
        return
    seq_len = tl.load(seq_lens_ptr + low)
    row = tl.load(first_rows_ptr + low).to(tl.int64) + offset
    member = tl.arange(0, BLOCK_M)
    token = member // GROUP
    heads = kv_head * GROUP + member % GROUP
    dims = tl.arange(0, BLOCK_D)
    real = (token < TILE_TOKENS) & (offset + token < num_tokens)
    real = real[:, None] & (dims[None, :] < HEAD_DIM)
    q = tl.load(
        q_ptr + (row + token)[:, None] * q_stride + heads[:, None] * HEAD_DIM + dims[None, :],
        mask=real,
        other=0.0,
    )  # [BLOCK_M, BLOCK_D]
    first_position = seq_len - num_tokens + offset
    positions = first_position + token
    end = tl.minimum(seq_len, first_position + TILE_TOKENS)
    # Blocks of keys begin at multiples of BLOCK_N, so that a token's sum has the same order
    # however its prompt was cut.
    begin = 0
    whole = (first_position + 1) // BLOCK_N * BLOCK_N
    if HAS_WINDOW:
        begin = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
        whole = begin
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    kv_ptr += kv_head * HEAD_DIM
    table_ptr = tables_ptr + table_stride.to(tl.int64) * low
    acc, total, largest = attend(
        acc, total, largest, q, positions, kv_ptr, table_ptr, page_stride, begin, whole, scale,
        cap, window, NUM_KV_HEADS, HEAD_DIM, PAGE_TOKENS, BLOCK_N, BLOCK_D, HAS_WINDOW, HAS_CAP,
        MASKED=False,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    acc, total, largest = attend(
        acc, total, largest, q, positions, kv_ptr, table_ptr, page_stride, whole, end, scale,
        cap, window, NUM_KV_HEADS, HEAD_DIM, PAGE_TOKENS, BLOCK_N, BLOCK_D, HAS_WINDOW, HAS_CAP,
        MASKED=True,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(
        out_ptr + (row + token)[:, None] * out_stride + heads[:, None] * HEAD_DIM + dims[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=real,
    )


def prefill_constants(scores: Scores, settings: Settings) -> dict[str, Any]:
    """prefill_kernel's constexprs."""
    return scores.constants() | {
        "BLOCK_M": max(settings["block_m"], triton.next_power_of_2(scores.group)),
        "BLOCK_N": settings["block_n"],
        "BLOCK_D": block_dim(scores.head_dim),
    }


def prefill(
    out: torch.Tensor,
    q: torch.Tensor,
    kv_pages: torch.Tensor,
    ragged: RaggedPrefill,
    scores: Scores,
) -> None:
    """Writes the prefill rows of `out`. No host sync."""
    settings = tuned("attention", device_name(q.device), "prefill", scores.case(q.dtype))
    constants = prefill_constants(scores, settings)
    num_seqs = ragged.seq_lens.shape[0]
    num_tiles = ragged.num_tokens // (constants["BLOCK_M"] // scores.group) + num_seqs
    prefill_kernel[(num_tiles, scores.num_kv_heads)](
        q,
        kv_pages,
        ragged.query_indptr,
        ragged.first_rows,
        ragged.seq_lens,
        ragged.block_tables,
        out,
        num_seqs,
        num_tiles,
        q.stride(0),
        out.stride(0),
        kv_pages.stride(0),
        ragged.block_tables.stride(0),
        scores.factor,
        scores.cap,
        scores.window or 0,
        **constants,
        **launch_options(settings),
    )
