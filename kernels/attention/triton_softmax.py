"""What decode and prefill share: queries of one key head over a range of keys, online softmax
(Milakov and Gimelshein 2018; tiled as in Dao et al. 2022), keys found through the page table.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = 1.4426950408889634


@triton.jit
def attend(
    acc,  # [BLOCK_M, BLOCK_D] f32
    total,  # [BLOCK_M] f32
    largest,  # [BLOCK_M] f32
    q,  # [BLOCK_M, BLOCK_D]
    positions,  # [BLOCK_M] of each query in its sequence
    kv_ptr,  # at this key head of page 0
    table_ptr,  # at this sequence's row
    page_stride,
    begin,
    end,
    scale,
    cap,
    window,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Takes keys [begin, end) into (acc, total, largest). Scores are in units of log2.

    With MASKED a key counts only at or before the query's position and inside its window; without,
    every key counts, and the range is a multiple of BLOCK_N. Nothing outside the range is read.
    """
    dims = tl.arange(0, BLOCK_D)
    in_head = dims < HEAD_DIM
    for start in range(begin, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        live = keys < end
        if MASKED:
            pages = tl.load(table_ptr + keys // PAGE_TOKENS, mask=live, other=0)
        else:
            pages = tl.load(table_ptr + keys // PAGE_TOKENS)
        at = pages.to(tl.int64) * page_stride + (keys % PAGE_TOKENS) * (NUM_KV_HEADS * HEAD_DIM)
        k_ptrs = kv_ptr + at[None, :] + dims[:, None]
        v_ptrs = kv_ptr + PAGE_TOKENS * NUM_KV_HEADS * HEAD_DIM + at[:, None] + dims[None, :]
        if MASKED:
            k = tl.load(k_ptrs, mask=in_head[:, None] & live[None, :], other=0.0)
            v = tl.load(v_ptrs, mask=in_head[None, :] & live[:, None], other=0.0)
        elif HEAD_DIM == BLOCK_D:
            k = tl.load(k_ptrs)
            v = tl.load(v_ptrs)
        else:
            k = tl.load(k_ptrs, mask=in_head[:, None], other=0.0)
            v = tl.load(v_ptrs, mask=in_head[None, :], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee")  # [BLOCK_M, BLOCK_N] f32
        factor = scale
        if HAS_CAP:
            # tanh; exact at both ends, where exp is infinite or 0
            scores = cap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * (scores * scale))))
            factor = 1.0
        if MASKED:
            seen = (keys[None, :] <= positions[:, None]) & live[None, :]
            if HAS_WINDOW:
                seen = seen & (keys[None, :] > positions[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        highest: tl.tensor = tl.max(scores, 1)  # pyright: ignore[reportAssignmentType]
        now = tl.maximum(largest, highest * factor)
        # A query that has seen no key yet: -inf - -inf would be NaN.
        base = tl.where(now == float("-inf"), 0.0, now)
        # Said outright, or the compiler would fuse it without a mask and not with one: a key's
        # weight must have the same bits in both.
        weights = tl.exp2(tl.fma(scores, factor, -base[:, None]))
        decay = tl.exp2(largest - base)
        total = total * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        largest = now
    return acc, total, largest
