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
    interleaved: bool = False,
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
        norm_kind(q_norm, head_dim),
        interleaved,
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
    for norm in (None, torch.ones(2)):  # whatever its kind
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
    _NORM_KIND,
    _INTERLEAVED,
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
) = range(24)

_NO_NORM, _HEAD_NORM, _WHOLE_NORM, _LAYER_NORM = range(4)


def norm_kind(q_norm: torch.Tensor | None, head_dim: int) -> int:
    """As `rope_arguments` wants it."""
    if q_norm is None:
        return _NO_NORM
    if q_norm.dim() == 2:
        return _LAYER_NORM
    return _HEAD_NORM if len(q_norm) == head_dim else _WHOLE_NORM


def rope_arguments(
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary: int,
    page_tokens: int,
    num_pages: int,
    kind: int,
    interleaved: bool,
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
    for none; kind: theirs, of `norm_kind`; eps: of one float32."""
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
        kind,
        int(interleaved),
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
def _mean(row: Any) -> Any:  # pragma: no cover - compiled
    total = np.float32(0.0)
    for k in range(row.size):
        total += load(row[k])
    return total / np.float32(row.size)


@compiled
def _inverse_deviation(row: Any, mean: Any, eps: Any) -> Any:  # pragma: no cover - compiled
    total = np.float32(0.0)
    for k in range(row.size):
        value = load(row[k]) - mean
        total += value * value
    return np.float32(1.0) / np.sqrt(total / np.float32(row.size) + eps)


@compiled
def _rotate_neighbours(
    head: Any, cos: Any, sin: Any, norm: Any, has_norm: Any, mean: Any, factor: Any, out: Any
) -> None:  # pragma: no cover - compiled
    for k in range(cos.size // 2):
        first, second = load(head[2 * k]), load(head[2 * k + 1])
        if has_norm:
            first = (first - mean) * factor * load(norm[2 * k])
            second = (second - mean) * factor * load(norm[2 * k + 1])
        store(out, 2 * k, first * load(cos[k]) - second * load(sin[k]))
        store(out, 2 * k + 1, second * load(cos[k]) + first * load(sin[k]))
    for k in range(cos.size, head.size):
        if has_norm:
            store(out, k, (load(head[k]) - mean) * factor * load(norm[k]))
        else:
            out[k] = head[k]


@compiled
def _rotate(
    head: Any, cos: Any, sin: Any, norm: Any, has_norm: Any, mean: Any, factor: Any, out: Any
) -> None:  # pragma: no cover - compiled
    half = cos.size // 2
    if has_norm:
        for k in range(half):
            first = (load(head[k]) - mean) * factor * load(norm[k])
            second = (load(head[half + k]) - mean) * factor * load(norm[half + k])
            store(out, k, first * load(cos[k]) - second * load(sin[k]))
            store(out, half + k, second * load(cos[half + k]) + first * load(sin[half + k]))
        for k in range(2 * half, head.size):
            store(out, k, (load(head[k]) - mean) * factor * load(norm[k]))
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
        has_positions, interleaved = a[POSITIONS] != 0, a[_INTERLEAVED] != 0
        positions = threads.array(
            a[POSITIONS] if has_positions else a[PAGE_INDEX], a, (num_tokens,)
        )
        page_index = threads.array(a[PAGE_INDEX], a, (num_tokens,))
        page_offset = threads.array(a[PAGE_OFFSET], a, (num_tokens,))
        kind = a[_NORM_KIND]
        has_norm, has_weights_of_heads = kind != _NO_NORM, kind >= _WHOLE_NORM
        step = 1 if has_weights_of_heads else 0  # from one head's weights to the next one's
        q_norm = threads.array(
            a[Q_NORM] if has_norm else a[_EPS],
            norm_like,
            (num_heads if has_weights_of_heads else 1, head_dim),
        )
        k_norm = threads.array(
            a[K_NORM] if has_norm else a[_EPS],
            norm_like,
            (num_kv_heads if has_weights_of_heads else 1, head_dim),
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
            q_factor, k_factor, mean = np.float32(1.0), np.float32(1.0), np.float32(0.0)
            if kind == _WHOLE_NORM:
                at = a[_QKV] + t * row_bytes
                q_factor = _inverse(threads.array(at, like, (num_heads * head_dim,)), eps)
                at += num_heads * head_dim * item_bytes
                k_factor = _inverse(threads.array(at, like, (num_kv_heads * head_dim,)), eps)
            for h in range(num_heads):
                query = qkv[t, h]
                if kind == _HEAD_NORM:
                    q_factor = _inverse(query, eps)
                elif kind == _LAYER_NORM:
                    mean = _mean(query)
                    q_factor = _inverse_deviation(query, mean, eps)
                weight, cosine, sine = q_norm[h * step], cos[angle], sin[angle]
                if interleaved:
                    _rotate_neighbours(
                        query, cosine, sine, weight, has_norm, mean, q_factor, q[t, h]
                    )
                else:
                    _rotate(query, cosine, sine, weight, has_norm, mean, q_factor, q[t, h])
            for h in range(num_kv_heads):
                key, target = qkv[t, num_heads + h], kv_pages[page, 0, slot, h]
                if kind == _HEAD_NORM:
                    k_factor = _inverse(key, eps)
                elif kind == _LAYER_NORM:
                    mean = _mean(key)
                    k_factor = _inverse_deviation(key, mean, eps)
                weight, cosine, sine = k_norm[h * step], cos[angle], sin[angle]
                if interleaved:
                    _rotate_neighbours(key, cosine, sine, weight, has_norm, mean, k_factor, target)
                else:
                    _rotate(key, cosine, sine, weight, has_norm, mean, k_factor, target)
                value = qkv[t, num_heads + num_kv_heads + h]
                target = kv_pages[page, 1, slot, h]
                for k in range(head_dim):
                    target[k] = value[k]

    return work
