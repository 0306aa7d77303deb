"""Attention of decode tokens on CPU: keys and values are read in their pages, without a copy."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.attention.metadata import AttentionMetadata
from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.exponential import exp, tanh
from kernels.cpu.floats import BITS, FLOATS, SUPPORTED_DTYPES, load, store

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
    _LONGEST,
    _OUT,
    _Q,
    KV_PAGES,
    _ROWS,
    _BLOCK_TABLES,
    _SEQ_LENS,
    _FACTORS,
    _SCRATCH,
    _NUM_ARGUMENTS,
) = range(20)


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
    _scratch.grow(num_threads * num_heads * (longest + 2 * head_dim))
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
        longest,
        out,
        q,
        kv_pages,
        metadata.decode_rows.data_ptr(),
        metadata.decode_block_tables.data_ptr(),
        metadata.decode_seq_lens.data_ptr(),
        factors,
        _scratch.buffer.ctypes.data,
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


class _Scratch:
    """Buffers kept between calls (one engine thread), grown as needed.

    buffer: float32, for each thread [num_heads, longest] scores, and its heads' queries and sums,
    each [num_heads, head_dim].
    """

    def __init__(self) -> None:
        self.buffer = np.empty(0, dtype=np.float32)

    def grow(self, size: int) -> None:
        if self.buffer.size < size:
            # Doubled, as every step of a growing sequence asks for more.
            self.buffer = np.empty(2 * size, dtype=np.float32)


_scratch = _Scratch()


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
def decode_worker(head_dim: int, group: int, dtype: torch.dtype) -> Any:
    """The kernel for heads of `head_dim` elements, `group` of which share a key head: with sizes
    that the compiler knows, rows stay in vector registers."""
    like = BITS if dtype is torch.bfloat16 else FLOATS

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        """Takes sequences, or parts of their heads, until none is left; keys and values in the
        order of memory."""
        a = threads.told(pointer, _NUM_ARGUMENTS)
        kv_heads, longest, parts = a[_NUM_KV_HEADS], a[_LONGEST], a[_PARTS]
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
        size = heads * (longest + 2 * head_dim)
        at = a[_SCRATCH] + threads.take(a, _THREAD) * size * 4
        scores = threads.array(at, FLOATS, (heads, longest))
        at += heads * longest * 4
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
