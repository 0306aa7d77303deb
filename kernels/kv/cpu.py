"""Rotary embedding and KV writes on CPU: each head is read once and written to where it belongs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.floats import BITS, FLOATS, SUPPORTED_DTYPES, load, store


def supports(qkv: torch.Tensor) -> bool:
    return qkv.device.type == "cpu" and qkv.dtype in SUPPORTED_DTYPES


def rope_write_kv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv_pages: torch.Tensor,
    page_index: torch.Tensor,
    page_offset: torch.Tensor,
    *,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """As `kernels.kv.naive.rope_write_kv`."""
    num_pages, _, page_tokens, num_kv_heads, head_dim = kv_pages.shape
    num_tokens = qkv.shape[0]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
    q = qkv.new_empty(num_tokens, num_heads, head_dim)
    epsilon = np.array([eps], dtype=np.float32)
    arguments = rope_arguments(
        num_tokens,
        num_heads,
        num_kv_heads,
        head_dim,
        cos.shape[1],
        page_tokens,
        num_pages,
        q_norm is not None and len(q_norm) != head_dim,
        qkv.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        cos.shape[0],
        0,
        kv_pages.data_ptr(),
        page_index.data_ptr(),
        page_offset.data_ptr(),
        0 if q_norm is None else q_norm.data_ptr(),
        0 if k_norm is None else k_norm.data_ptr(),
        epsilon.ctypes.data,
        q.data_ptr(),
    )
    norm_dtype = qkv.dtype if q_norm is None else q_norm.dtype
    threads.run(rope_worker(qkv.dtype, norm_dtype), np.array(arguments))
    return q


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    slot = torch.zeros(1, dtype=torch.int64)
    angles = torch.zeros(1, 2, dtype=dtype)
    pages = torch.zeros(1, 2, 1, 1, 2, dtype=dtype)
    for norm in (None, torch.ones(2)):
        rope_write_kv(
            torch.zeros(1, 6, dtype=dtype),
            angles,
            angles,
            pages,
            slot,
            slot,
            q_norm=norm,
            k_norm=norm,
            eps=1.0,
        )


# What the threads are told: a counter, sizes, and addresses.
(
    _NEXT,
    _,
    _NUM_TOKENS,
    _NUM_HEADS,
    _NUM_KV_HEADS,
    _HEAD_DIM,
    _ROTARY,
    _PAGE_TOKENS,
    _NUM_PAGES,
    _HAS_WHOLE_NORMS,
    _QKV,
    COS,
    SIN,
    _NUM_ANGLES,
    POSITIONS,
    KV_PAGES,
    PAGE_INDEX,
    PAGE_OFFSET,
    Q_NORM,
    K_NORM,
    _EPS,
    _Q,
    _NUM_ARGUMENTS,
) = range(23)


def rope_arguments(
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary: int,
    page_tokens: int,
    num_pages: int,
    has_whole_norms: bool,
    qkv: int,
    cos: int,
    sin: int,
    num_angles: int,
    positions: int,
    kv_pages: int,
    page_index: int,
    page_offset: int,
    q_norm: int,
    k_norm: int,
    eps: int,
    q: int,
) -> tuple[int, ...]:
    """What a rope worker is told, from `qkv` on addresses. cos, sin: [num_angles, rotary];
    positions: the row of each token in them, or 0 when tokens have their rows in order; norms: 0
    for none; has_whole_norms: theirs are of all heads together; eps: of one float32."""
    return (
        0,
        0,
        num_tokens,
        num_heads,
        num_kv_heads,
        head_dim,
        rotary,
        page_tokens,
        num_pages,
        int(has_whole_norms),
        qkv,
        cos,
        sin,
        num_angles,
        positions,
        kv_pages,
        page_index,
        page_offset,
        q_norm,
        k_norm,
        eps,
        q,
    )


@compiled
def _inverse(row: Any, eps: Any) -> Any:  # pragma: no cover - compiled
    """Of the root of the mean square."""
    total = np.float32(0.0)
    for k in range(row.size):
        value = load(row[k])
        total += value * value
    return np.float32(1.0) / np.sqrt(total / np.float32(row.size) + eps)


@compiled
def _rotate(
    head: Any, cos: Any, sin: Any, norm: Any, has_norm: Any, factor: Any, out: Any
) -> None:  # pragma: no cover - compiled
    half = cos.size // 2
    if has_norm:
        for k in range(half):
            first = load(head[k]) * factor * load(norm[k])
            second = load(head[half + k]) * factor * load(norm[half + k])
            store(out, k, first * load(cos[k]) - second * load(sin[k]))
            store(out, half + k, second * load(cos[half + k]) + first * load(sin[half + k]))
        for k in range(2 * half, head.size):
            store(out, k, load(head[k]) * factor * load(norm[k]))
        return
    for k in range(half):
        first, second = load(head[k]), load(head[half + k])
        store(out, k, first * load(cos[k]) - second * load(sin[k]))
        store(out, half + k, second * load(cos[half + k]) + first * load(sin[half + k]))
    for k in range(2 * half, head.size):
        out[k] = head[k]


@cache
def rope_worker(dtype: torch.dtype, norm_dtype: torch.dtype) -> Any:
    like = BITS if dtype is torch.bfloat16 else FLOATS
    norm_like = BITS if norm_dtype is torch.bfloat16 else FLOATS
    item_bytes = dtype.itemsize

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        """Takes tokens until none is left."""
        a = threads.told(pointer, _NUM_ARGUMENTS)
        num_tokens, num_heads, num_kv_heads = a[_NUM_TOKENS], a[_NUM_HEADS], a[_NUM_KV_HEADS]
        head_dim, rotary = a[_HEAD_DIM], a[_ROTARY]
        qkv = threads.array(a[_QKV], like, (num_tokens, num_heads + 2 * num_kv_heads, head_dim))
        cos = threads.array(a[COS], like, (a[_NUM_ANGLES], rotary))
        sin = threads.array(a[SIN], like, (a[_NUM_ANGLES], rotary))
        has_positions, has_norm = a[POSITIONS] != 0, a[Q_NORM] != 0
        positions = threads.array(
            a[POSITIONS] if has_positions else a[PAGE_INDEX], a, (num_tokens,)
        )
        page_index = threads.array(a[PAGE_INDEX], a, (num_tokens,))
        page_offset = threads.array(a[PAGE_OFFSET], a, (num_tokens,))
        has_whole_norms = a[_HAS_WHOLE_NORMS] != 0
        has_head_norms = has_norm and not has_whole_norms
        step = 1 if has_whole_norms else 0  # from one head's weights to the next one's
        q_norm = threads.array(
            a[Q_NORM] if has_norm else a[_EPS],
            norm_like,
            (num_heads if has_whole_norms else 1, head_dim),
        )
        k_norm = threads.array(
            a[K_NORM] if has_norm else a[_EPS],
            norm_like,
            (num_kv_heads if has_whole_norms else 1, head_dim),
        )
        row_bytes = (num_heads + 2 * num_kv_heads) * head_dim * item_bytes
        eps = threads.array(a[_EPS], FLOATS, (1,))[0]
        kv_pages = threads.array(
            a[KV_PAGES],
            like,
            (a[_NUM_PAGES], 2, a[_PAGE_TOKENS], num_kv_heads, head_dim),
        )
        q = threads.array(a[_Q], like, (num_tokens, num_heads, head_dim))
        while True:
            t = threads.take(a, _NEXT)
            if t >= num_tokens:
                return
            angle = positions[t] if has_positions else t
            page, slot = page_index[t], page_offset[t]
            q_factor, k_factor = np.float32(1.0), np.float32(1.0)
            if has_whole_norms:
                at = a[_QKV] + t * row_bytes
                q_factor = _inverse(threads.array(at, like, (num_heads * head_dim,)), eps)
                at += num_heads * head_dim * item_bytes
                k_factor = _inverse(threads.array(at, like, (num_kv_heads * head_dim,)), eps)
            for h in range(num_heads):
                query = qkv[t, h]
                if has_head_norms:
                    q_factor = _inverse(query, eps)
                weight = q_norm[h * step]
                _rotate(query, cos[angle], sin[angle], weight, has_norm, q_factor, q[t, h])
            for h in range(num_kv_heads):
                key, target = qkv[t, num_heads + h], kv_pages[page, 0, slot, h]
                if has_head_norms:
                    k_factor = _inverse(key, eps)
                weight = k_norm[h * step]
                _rotate(key, cos[angle], sin[angle], weight, has_norm, k_factor, target)
                value = qkv[t, num_heads + num_kv_heads + h]
                target = kv_pages[page, 1, slot, h]
                for k in range(head_dim):
                    target[k] = value[k]

    return work
