"""Rotary embedding and KV writes on CPU: each head is read once and written to where it belongs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kernels.cpu.compile import compiled
from kernels.cpu.floats import SUPPORTED_DTYPES, bits_of, load, store

MAX_TOKENS = 1024
"""A kernel runs on one thread: with many more tokens, torch's many are faster."""


def supports(qkv: torch.Tensor) -> bool:
    return qkv.device.type == "cpu" and qkv.dtype in SUPPORTED_DTYPES and qkv.shape[0] <= MAX_TOKENS


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
    num_kv_heads, head_dim = kv_pages.shape[3:]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    q = qkv.new_empty(qkv.shape[0], num_heads, head_dim)
    has_norm = q_norm is not None and k_norm is not None
    q_weight = k_weight = cos[0]  # any, when there is none
    if q_norm is not None and k_norm is not None:
        q_weight, k_weight = q_norm, k_norm
    _rope_write_kv(
        bits_of(qkv),
        bits_of(cos),
        bits_of(sin),
        bits_of(kv_pages),
        page_index.numpy(),
        page_offset.numpy(),
        bits_of(q_weight),
        bits_of(k_weight),
        has_norm,
        np.float32(eps),
        bits_of(q),
    )
    return q


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    slot = torch.zeros(1, dtype=torch.int64)
    angles = torch.zeros(1, 2, dtype=dtype)
    pages = torch.zeros(1, 2, 1, 1, 2, dtype=dtype)
    for norm in (None, torch.ones(2, dtype=dtype), torch.ones(2)):
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


@compiled
def _rotate(
    head: Any, cos: Any, sin: Any, norm: Any, has_norm: Any, eps: Any, out: Any
) -> None:  # pragma: no cover - compiled
    half = cos.size // 2
    factor = np.float32(1.0)
    if has_norm:
        total = np.float32(0.0)
        for k in range(head.size):
            value = load(head[k])
            total += value * value
        factor /= np.sqrt(total / np.float32(head.size) + eps)
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


@compiled
def _rope_write_kv(
    qkv: Any,
    cos: Any,
    sin: Any,
    kv_pages: Any,
    page_index: Any,
    page_offset: Any,
    q_norm: Any,
    k_norm: Any,
    has_norm: Any,
    eps: Any,
    q: Any,
) -> None:  # pragma: no cover - compiled
    num_kv_heads, head_dim = kv_pages.shape[3], kv_pages.shape[4]
    num_heads = q.shape[1]
    for t in range(qkv.shape[0]):
        page, slot = page_index[t], page_offset[t]
        for h in range(num_heads):
            head = qkv[t, h * head_dim : (h + 1) * head_dim]
            _rotate(head, cos[t], sin[t], q_norm, has_norm, eps, q[t, h])
        for h in range(num_kv_heads):
            at = (num_heads + h) * head_dim
            head = qkv[t, at : at + head_dim]
            _rotate(head, cos[t], sin[t], k_norm, has_norm, eps, kv_pages[page, 0, slot, h])
            at += num_kv_heads * head_dim
            value, target = qkv[t, at : at + head_dim], kv_pages[page, 1, slot, h]
            for k in range(head_dim):
                target[k] = value[k]
