"""Attention of decode tokens on CPU: keys and values are read in their pages, without a copy."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.attention.metadata import AttentionMetadata
from kernels.attention.softmax import weigh_scores
from kernels.attention.tile import RUN, score, weigh
from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.exponential import exp, tanh
from kernels.cpu.features import has
from kernels.cpu.floats import BITS, FLOATS, SUPPORTED_DTYPES, load, store
from kernels.cpu.scratch import Scratch
from kernels.cpu.vectors import LANES, LINE, gather, spread

# What the threads are told: a counter, sizes, and addresses.
(
    _NEXT,
    _THREAD,
    _NUM_DECODE,
    _PARTS,
    _NUM_TOKENS,
    _NUM_KV_HEADS,
    _NUM_PAGES,
    _PAGE_TOKENS,
    _MAX_BLOCKS,
    WINDOW,
    _STRIDE,
    _OUT,
    _Q,
    KV_PAGES,
    _ROWS,
    _BLOCK_TABLES,
    _SEQ_LENS,
    _FACTORS,
    _SCRATCH,
    _SCRATCH_SIZE,
    _NUM_ARGUMENTS,
) = range(21)


def supports(q: torch.Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype in SUPPORTED_DTYPES


def decode_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    kv_pages: torch.Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> None:
    """As `kernels.attention.naive.paged_attention`, for the rows of decode tokens of `out`.

    out, q, kv_pages: contiguous
    """
    num_pages, _, page_tokens, num_kv_heads, head_dim = kv_pages.shape
    num_tokens, num_heads, _ = q.shape
    factors = np.array([scale, soft_cap or 0.0], dtype=np.float32)
    arguments = decode_arguments(
        metadata,
        num_tokens,
        num_heads,
        num_kv_heads,
        head_dim,
        num_pages,
        page_tokens,
        sliding_window,
        out.data_ptr(),
        q.data_ptr(),
        kv_pages.data_ptr(),
        factors.ctypes.data,
    )
    work = decode_worker(head_dim, num_heads // num_kv_heads, q.dtype)
    threads.run(work, np.array(arguments))


def decode_arguments(
    metadata: AttentionMetadata,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_pages: int,
    page_tokens: int,
    window: int | None,
    out: int,
    q: int,
    kv_pages: int,
    factors: int,
) -> tuple[int, ...]:
    """What a decode worker is told. From `out` on addresses; factors: of scale and soft cap (0:
    none), float32. Once these are made, no more threads may run than torch has now."""
    num_decode, max_blocks = metadata.decode_block_tables.shape
    longest = max_blocks * page_tokens
    num_threads = torch.get_num_threads()
    # Few sequences are split by heads, so that every thread has some.
    parts = 1 if num_decode >= 2 * num_threads else min(num_threads, num_kv_heads)
    # Of scores: an odd number of cache lines, as the scores of a position would share one set of
    # a cache at a power of two.
    stride = (-(-longest // RUN) + 1 | 1) * RUN
    scratch_size = num_heads * (stride + 2 * head_dim + 1) + 2 * (2 * stride)
    scratch_size = -(-scratch_size // LANES) * LANES
    return (
        0,
        0,
        num_decode,
        parts,
        num_tokens,
        num_kv_heads,
        num_pages,
        page_tokens,
        max_blocks,
        longest if window is None else window,
        stride,
        out,
        q,
        kv_pages,
        metadata.decode_rows.data_ptr(),
        metadata.decode_block_tables.data_ptr(),
        metadata.decode_seq_lens.data_ptr(),
        factors,
        _scratch.address(num_threads * scratch_size),
        scratch_size,
    )


def warm_up(dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Compiles for this dtype and shape, or loads what an earlier process compiled."""
    q = torch.zeros(1, num_heads, head_dim, dtype=dtype)
    row = torch.zeros(1, dtype=torch.int64)
    metadata = AttentionMetadata((), row, row.view(1, 1), row + 1)
    decode_attention(
        torch.empty_like(q),
        q,
        torch.zeros(1, 2, 1, num_kv_heads, head_dim, dtype=dtype),
        metadata,
        scale=1.0,
        sliding_window=None,
        soft_cap=None,
    )


# For each thread [num_heads, stride] scores, its heads' queries and sums, each
# [num_heads, head_dim], [2 * stride] addresses of rows, int64, and [num_heads] totals. Every step
# of a growing sequence asks for more.
_scratch = Scratch(growth=2)


def decode_worker(head_dim: int, group: int, dtype: torch.dtype) -> Any:
    """The kernel for heads of `head_dim` elements, `group` of which share a key head."""
    is_tiled = dtype is torch.bfloat16 and head_dim % LINE == 0 and has("avx512f")
    return tiled_worker(head_dim, group) if is_tiled else plain_worker(head_dim, group, dtype)


@cache
def tiled_worker(head_dim: int, group: int) -> Any:
    """For bfloat16, rows that are whole LINEs, and processors with vectors of LANES float32."""

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        """Takes sequences, or parts of their heads, until none is left; keys and values run by run,
        almost in the order of memory."""
        a = threads.told(pointer, _NUM_ARGUMENTS)
        kv_heads, parts, page_tokens = a[_NUM_KV_HEADS], a[_PARTS], a[_PAGE_TOKENS]
        heads, stride = kv_heads * group, a[_STRIDE]
        head_bytes = head_dim * 2
        token_bytes, num_decode = kv_heads * head_bytes, a[_NUM_DECODE]
        batch_rows = threads.array(a[_ROWS], a, (num_decode,))
        tables = threads.array(a[_BLOCK_TABLES], a, (num_decode, a[_MAX_BLOCKS]))
        seq_lens = threads.array(a[_SEQ_LENS], a, (num_decode,))
        factors = threads.array(a[_FACTORS], FLOATS, (2,))
        scores_at = a[_SCRATCH] + threads.take(a, _THREAD) * a[_SCRATCH_SIZE] * 4
        queries_at = scores_at + heads * stride * 4
        sums_at = queries_at + heads * head_dim * 4
        rows_at = sums_at + heads * head_dim * 4
        scores = threads.array(scores_at, FLOATS, (heads, stride))
        sums = threads.array(sums_at, FLOATS, (heads, head_dim))
        rows = threads.array(rows_at, a, (2 * stride,))
        totals = threads.array(rows_at + 2 * stride * 8, FLOATS, (heads,))
        while True:
            task = threads.take(a, _NEXT)
            if task >= num_decode * parts:
                return
            n, part = divmod(task, parts)
            first = max(seq_lens[n] - a[WINDOW], 0)
            count = seq_lens[n] - first
            padded = (count + RUN - 1) // RUN * RUN
            block, slot = divmod(first, page_tokens)
            for k in range(count):
                page = tables[n, block] * 2
                rows[k] = a[KV_PAGES] + (page * page_tokens + slot) * token_bytes
                rows[padded + k] = rows[k] + page_tokens * token_bytes
                slot += 1
                if slot == page_tokens:
                    block, slot = block + 1, 0
            rows[count:padded] = rows[count - 1]
            rows[padded + count : 2 * padded + RUN] = rows[padded + count - 1]
            first_kv_head = part * kv_heads // parts
            end_kv_head = (part + 1) * kv_heads // parts
            first_head, end_head = first_kv_head * group, end_kv_head * group
            batch_row = batch_rows[n] * heads
            for head in range(first_head, end_head):
                query_at = a[_Q] + (batch_row + head) * head_bytes
                spread(queries_at + head * head_dim * 4, query_at, factors[0], head_dim)
            for k in range(0, padded, RUN):
                for kv_head in range(first_kv_head, end_kv_head):
                    head = kv_head * group
                    score(
                        scores_at + (head * stride + k) * 4,
                        stride,
                        queries_at + head * head_dim * 4,
                        rows_at + k * 8,
                        kv_head * head_bytes,
                        head_dim,
                        group,
                    )
            for head in range(first_head, end_head):
                totals[head] = weigh_scores(scores[head, :padded], count, factors[1])
            sums[first_head:end_head] = np.float32(0.0)
            for k in range(0, count, RUN):
                for kv_head in range(first_kv_head, end_kv_head):
                    head = kv_head * group
                    weigh(
                        sums_at + head * head_dim * 4,
                        scores_at + (head * stride + k) * 4,
                        stride,
                        rows_at + (padded + k) * 8,
                        kv_head * head_bytes,
                        min(RUN, count - k),
                        head_dim,
                        group,
                    )
            for head in range(first_head, end_head):
                out_at = a[_OUT] + (batch_row + head) * head_bytes
                factor = np.float32(1.0) / totals[head]
                gather(out_at, sums_at + head * head_dim * 4, factor, head_dim)

    return work


@compiled
def _softmax(scores: Any, scale: Any, soft_cap: Any) -> None:  # pragma: no cover - compiled
    """In place."""
    zero, one = np.float32(0.0), np.float32(1.0)
    highest = np.float32(-np.inf)
    for k in range(scores.size):
        score = scores[k] * scale
        if soft_cap > zero:
            score = soft_cap * tanh(score / soft_cap)
        scores[k] = score
        highest = max(highest, score)
    total = zero
    for k in range(scores.size):
        weight = exp(scores[k] - highest)
        scores[k] = weight
        total += weight
    factor = one / total
    for k in range(scores.size):
        scores[k] *= factor


@cache
def plain_worker(head_dim: int, group: int, dtype: torch.dtype) -> Any:
    """For any type and processor: with sizes that the compiler knows, rows stay in registers."""
    like = BITS if dtype is torch.bfloat16 else FLOATS

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        """Takes sequences, or parts of their heads, until none is left; keys and values in the
        order of memory."""
        a = threads.told(pointer, _NUM_ARGUMENTS)
        kv_heads, stride, parts = a[_NUM_KV_HEADS], a[_STRIDE], a[_PARTS]
        page_tokens = a[_PAGE_TOKENS]
        heads = kv_heads * group
        shape = (a[_NUM_TOKENS], heads, head_dim)
        out = threads.array(a[_OUT], like, shape)
        q = threads.array(a[_Q], like, shape)
        kv_pages = threads.array(
            a[KV_PAGES],
            like,
            (a[_NUM_PAGES], 2, page_tokens, kv_heads, head_dim),
        )
        num_decode = a[_NUM_DECODE]
        rows = threads.array(a[_ROWS], a, (num_decode,))
        tables = threads.array(a[_BLOCK_TABLES], a, (num_decode, a[_MAX_BLOCKS]))
        seq_lens = threads.array(a[_SEQ_LENS], a, (num_decode,))
        factors = threads.array(a[_FACTORS], FLOATS, (2,))
        at = a[_SCRATCH] + threads.take(a, _THREAD) * a[_SCRATCH_SIZE] * 4
        scores = threads.array(at, FLOATS, (heads, stride))
        at += heads * stride * 4
        queries = threads.array(at, FLOATS, (heads, head_dim))
        at += heads * head_dim * 4
        sums = threads.array(at, FLOATS, (heads, head_dim))
        while True:
            task = threads.take(a, _NEXT)
            if task >= num_decode * parts:
                return
            n, part = divmod(task, parts)
            first = max(seq_lens[n] - a[WINDOW], 0)
            count = seq_lens[n] - first
            first_kv_head = part * kv_heads // parts
            end_kv_head = (part + 1) * kv_heads // parts
            for head in range(first_kv_head * group, end_kv_head * group):
                for k in range(head_dim):
                    queries[head, k] = load(q[rows[n], head, k])
                    sums[head, k] = np.float32(0.0)
            for at in range(count):
                block, slot = divmod(first + at, page_tokens)
                keys = kv_pages[tables[n, block], 0, slot]
                for kv_head in range(first_kv_head, end_kv_head):
                    for g in range(group):
                        head, score = kv_head * group + g, np.float32(0.0)
                        for k in range(head_dim):
                            score += load(keys[kv_head, k]) * queries[head, k]
                        scores[head, at] = score
            for head in range(first_kv_head * group, end_kv_head * group):
                _softmax(scores[head, :count], factors[0], factors[1])
            for at in range(count):
                block, slot = divmod(first + at, page_tokens)
                values = kv_pages[tables[n, block], 1, slot]
                for kv_head in range(first_kv_head, end_kv_head):
                    for g in range(group):
                        head = kv_head * group + g
                        weight = scores[head, at]
                        for k in range(head_dim):
                            sums[head, k] += weight * load(values[kv_head, k])
            for head in range(first_kv_head * group, end_kv_head * group):
                target = out[rows[n], head]
                for k in range(head_dim):
                    store(target, k, sums[head, k])

    return work
