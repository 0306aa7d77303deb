"""What norms over all of q and all of k multiply with, in one Triton kernel: CUDA and ROCm.

The heads of a row are rotated by several programs, none of which sees all of them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_BLOCK = 1024
OPTIONS: dict[str, Any] = {"num_warps": 4, "num_stages": 1}


@triton.jit
def qk_inverse_kernel(
    qkv_ptr,
    delta_ptr,
    out_ptr,
    qkv_stride,
    eps,
    Q_SIZE: tl.constexpr,
    KV_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    """grid (tokens, 2). One program: one token's q, or its k; sums in f32."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    size = tl.where(part == 0, Q_SIZE, KV_SIZE)
    row_ptr = qkv_ptr + token * qkv_stride + part * Q_SIZE
    delta_row_ptr = delta_ptr + token * (Q_SIZE + 2 * KV_SIZE) + part * Q_SIZE
    at = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, Q_SIZE, BLOCK):  # k is no longer than q
        real = first + at < size
        x = tl.load(row_ptr + first + at, mask=real, other=0.0).to(tl.float32)
        if HAS_DELTA:
            x += tl.load(delta_row_ptr + first + at, mask=real, other=0.0).to(tl.float32)
        squares += x * x
    inverse = tl.rsqrt(tl.sum(squares, 0) / size.to(tl.float32) + eps)
    tl.store(out_ptr + token * 2 + part, inverse)


def qk_constants(q_size: int, kv_size: int, has_delta: bool) -> dict[str, Any]:
    """qk_inverse_kernel's constexprs."""
    return {
        "Q_SIZE": q_size,
        "KV_SIZE": kv_size,
        "BLOCK": min(_BLOCK, triton.next_power_of_2(q_size)),
        "HAS_DELTA": has_delta,
    }


def qk_inverse(
    qkv: torch.Tensor, q_size: int, kv_size: int, eps: float, delta: torch.Tensor | None
) -> torch.Tensor:
    """1 / root of the mean square, of q and of k.

    qkv: [num_tokens, q_size + 2 * kv_size], rows contiguous, num_tokens > 0
    delta: of qkv's shape, contiguous: added first; or None
    Returns [num_tokens, 2] float32
    """
    out = torch.empty(len(qkv), 2, dtype=torch.float32, device=qkv.device)
    qk_inverse_kernel[(len(qkv), 2)](
        qkv,
        qkv if delta is None else delta,
        out,
        qkv.stride(0),
        eps,
        **qk_constants(q_size, kv_size, delta is not None),
        **OPTIONS,
    )
    return out
