"""Rotary embedding and KV writes: checks, then the implementation for the device."""

from __future__ import annotations

import torch

from kernels.fused.op import check_delta
from kernels.gpu.dispatch import uses_triton
from kernels.kv import cpu, naive


def rope_write_kv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv_pages: torch.Tensor,
    page_index: torch.Tensor,
    page_offset: torch.Tensor,
    *,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    delta: torch.Tensor | None = None,
    interleaved: bool = False,
) -> torch.Tensor:
    """As `kernels.kv.naive.rope_write_kv`.

    delta: of qkv's shape and dtype, what qkv still lacks: added on the way; by Triton kernels alone

    Raises: ValueError for shapes, strides or dtypes that do not fit together.
    """
    if qkv.dim() != 2 or kv_pages.dim() != 5 or kv_pages.shape[1] != 2:
        raise ValueError(f"qkv {tuple(qkv.shape)}, kv_pages {tuple(kv_pages.shape)}")
    if not (qkv.dtype == cos.dtype == sin.dtype == kv_pages.dtype):
        raise ValueError(f"dtypes differ: qkv {qkv.dtype}, cos {cos.dtype}, kv {kv_pages.dtype}")
    num_kv_heads, head_dim = kv_pages.shape[3:]
    num_heads, rest = divmod(qkv.shape[1] - 2 * num_kv_heads * head_dim, head_dim)
    if rest or num_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"{qkv.shape[1]} columns are not q, k and v of {tuple(kv_pages.shape)}")
    if cos.shape != sin.shape or cos.shape[0] != qkv.shape[0] or cos.shape[1] > head_dim:
        raise ValueError(f"cos {tuple(cos.shape)}, sin {tuple(sin.shape)}, head_dim {head_dim}")
    if cos.shape[1] % 2 or not kv_pages.is_contiguous():
        raise ValueError(f"{cos.shape[1]} rotated elements, pages of strides {kv_pages.stride()}")
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm and k_norm come together")
    if q_norm is not None and k_norm is not None:
        _check_norms(q_norm, k_norm, num_heads, num_kv_heads, head_dim)
    if delta is not None:
        check_delta(qkv, delta)
    if uses_triton(qkv):
        from kernels.kv import triton_rope

        return triton_rope.rope_write_kv(
            qkv,
            cos,
            sin,
            kv_pages,
            page_index,
            page_offset,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=eps,
            delta=delta,
            interleaved=interleaved,
        )
    for slots in (page_index, page_offset):
        if (
            slots.dtype is not torch.int64
            or slots.shape != qkv.shape[:1]
            or not slots.is_contiguous()
        ):
            raise ValueError(f"slots {slots.dtype} {tuple(slots.shape)}, qkv {tuple(qkv.shape)}")
    implementation = cpu if cpu.supports(qkv) else naive
    return implementation.rope_write_kv(
        qkv,
        cos,
        sin,
        kv_pages,
        page_index,
        page_offset,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        interleaved=interleaved,
    )


def _check_norms(
    q_norm: torch.Tensor, k_norm: torch.Tensor, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    fits = (q_norm.shape, k_norm.shape) in (
        ((head_dim,), (head_dim,)),
        ((num_heads * head_dim,), (num_kv_heads * head_dim,)),
        ((num_heads, head_dim), (num_kv_heads, head_dim)),
    )
    for norm in (q_norm, k_norm):
        if not fits or not norm.is_contiguous():
            raise ValueError(
                f"norm {tuple(norm.shape)} {norm.stride()}, head_dim {head_dim}, {num_heads} query"
                f" and {num_kv_heads} key heads"
            )
