"""Norm, rotary embedding and KV write in one Triton kernel: CUDA and ROCm."""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
import triton.language as tl

from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import launch_options, tuned
from kernels.kv.triton_qk_norm import qk_inverse

_CASES = (64, 128, 256)

NormKind = Literal["", "head", "whole", "layer"]
"""RMSNorm of each head, or of all of them together, or LayerNorm of each head."""


@triton.jit(
    do_not_specialize_on_alignment=["page_index_ptr", "page_offset_ptr"],
)
def rope_write_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    inverse_ptr,
    delta_ptr,
    q_out_ptr,
    kv_ptr,
    page_index_ptr,
    page_offset_ptr,
    qkv_stride,
    page_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_WHOLE_NORM: tl.constexpr,
    HAS_LAYER_NORM: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """grid (tokens, groups of HEADS heads of q, k and v). One program: HEADS heads of one token.
    HAS_NORM: of each head; HAS_WHOLE_NORM: of all heads, whose sums are in inverse_ptr;
    HAS_LAYER_NORM: of each head, with weights of its own. INTERLEAVED: neighbours are rotated
    together, not the halves.

    Each element is loaded with the one that it is rotated with; all in f32, rounded once.
    """
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, BLOCK_D)
    is_query = heads < NUM_HEADS
    is_value = heads >= NUM_HEADS + NUM_KV_HEADS
    real = (heads < NUM_HEADS + 2 * NUM_KV_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    HALF: tl.constexpr = ROTARY_DIM // 2
    if INTERLEAVED:
        partners, angles, is_first = dims ^ 1, dims // 2, dims % 2 == 0
    else:
        partners = tl.where(dims < HALF, dims + HALF, dims - HALF)
        angles, is_first = dims, dims < HALF
    turned = dims < ROTARY_DIM
    row_ptr = qkv_ptr + token * qkv_stride + heads[:, None] * HEAD_DIM
    own = tl.load(row_ptr + dims[None, :], mask=real, other=0.0)  # [HEADS, BLOCK_D]
    x = own.to(tl.float32)
    other = tl.load(row_ptr + partners[None, :], mask=real & turned[None, :], other=0.0)
    other = other.to(tl.float32)
    if HAS_DELTA:
        columns: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
        delta_ptr += token * columns + heads[:, None] * HEAD_DIM
        x += tl.load(delta_ptr + dims[None, :], mask=real, other=0.0).to(tl.float32)
        own = x.to(own.dtype)
        moved = tl.load(delta_ptr + partners[None, :], mask=real & turned[None, :], other=0.0)
        other += moved.to(tl.float32)
    if HAS_NORM:
        inverse = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        in_head = dims < HEAD_DIM
        q_weight = tl.load(q_norm_ptr + dims, mask=in_head, other=0.0).to(tl.float32)
        k_weight = tl.load(k_norm_ptr + dims, mask=in_head, other=0.0).to(tl.float32)
        x = x * inverse * tl.where(is_query[:, None], q_weight[None, :], k_weight[None, :])
        q_weight = tl.load(q_norm_ptr + partners, mask=turned, other=0.0).to(tl.float32)
        k_weight = tl.load(k_norm_ptr + partners, mask=turned, other=0.0).to(tl.float32)
        other = other * inverse * tl.where(is_query[:, None], q_weight[None, :], k_weight[None, :])
    if HAS_LAYER_NORM:
        mean = (tl.sum(x, 1) / HEAD_DIM)[:, None]
        x = tl.where(dims[None, :] < HEAD_DIM, x - mean, 0.0)
        other -= mean
        inverse = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        x *= inverse
        other *= inverse
    if HAS_WHOLE_NORM:
        inverse = tl.where(
            is_query, tl.load(inverse_ptr + token * 2), tl.load(inverse_ptr + token * 2 + 1)
        )[:, None]
        x *= inverse
        other *= inverse
    if HAS_WHOLE_NORM or HAS_LAYER_NORM:
        of_key = heads - NUM_HEADS
        is_key = (of_key >= 0) & (of_key < NUM_KV_HEADS)
        q_row = q_norm_ptr + heads[:, None] * HEAD_DIM
        k_row = k_norm_ptr + of_key[:, None] * HEAD_DIM
        of_q, of_k = real & is_query[:, None], real & is_key[:, None]
        x *= tl.load(q_row + dims[None, :], mask=of_q, other=0.0).to(tl.float32) + tl.load(
            k_row + dims[None, :], mask=of_k, other=0.0
        ).to(tl.float32)
        of_q, of_k = of_q & turned[None, :], of_k & turned[None, :]
        other *= tl.load(q_row + partners[None, :], mask=of_q, other=0.0).to(tl.float32) + tl.load(
            k_row + partners[None, :], mask=of_k, other=0.0
        ).to(tl.float32)
    cos = tl.load(cos_ptr + token * ROTARY_DIM + angles, mask=turned, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * ROTARY_DIM + angles, mask=turned, other=0.0).to(tl.float32)
    sin = tl.where(is_first, -sin, sin)
    rotated = (x * cos[None, :] + other * sin[None, :]).to(own.dtype)
    tl.store(
        q_out_ptr + (token * NUM_HEADS + heads)[:, None] * HEAD_DIM + dims[None, :],
        rotated,
        mask=real & is_query[:, None],
    )
    page = tl.load(page_index_ptr + token).to(tl.int64)
    slot = tl.load(page_offset_ptr + token).to(tl.int64)
    # A scalar condition joined to a vector's would not be a mask to every release's interpreter.
    first_stored = tl.where(page >= 0, NUM_HEADS, NUM_HEADS + 2 * NUM_KV_HEADS)
    kv_head = tl.where(is_value, heads - NUM_KV_HEADS, heads) - NUM_HEADS
    at = page * page_stride + (is_value.to(tl.int64) * PAGE_TOKENS + slot) * (
        NUM_KV_HEADS * HEAD_DIM
    )
    tl.store(
        kv_ptr + (at + kv_head * HEAD_DIM)[:, None] + dims[None, :],
        tl.where(is_value[:, None], own, rotated),
        mask=real & (heads >= first_stored)[:, None],
    )


def rope_constants(
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, page_tokens: int,
    norm: NormKind, heads: int, has_delta: bool = False, interleaved: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """rope_write_kernel's constexprs."""
    return {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "ROTARY_DIM": rotary_dim,
        "PAGE_TOKENS": page_tokens,
        "HEADS": heads,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "HAS_NORM": norm == "head",
        "HAS_WHOLE_NORM": norm == "whole",
        "HAS_LAYER_NORM": norm == "layer",
        "HAS_DELTA": has_delta,
        "INTERLEAVED": interleaved,
    }


def _norm_kind(q_norm: torch.Tensor | None, head_dim: int) -> NormKind:
    if q_norm is None:
        return ""
    if q_norm.dim() == 2:
        return "layer"
    return "head" if len(q_norm) == head_dim else "whole"


def rope_case(head_dim: int) -> str:
    """The tuning table's name for heads of this size; larger ones share the last."""
    return str(next((case for case in _CASES if head_dim <= case), _CASES[-1]))


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
    """As `kernels.kv.op.rope_write_kv`, computed in float32 and rounded once.

    page_index: also -1, for padding: nothing is stored

    Raises: ValueError for pages that are not contiguous.
    """
    _, _, page_tokens, num_kv_heads, head_dim = kv_pages.shape
    if not kv_pages[0].is_contiguous():
        raise ValueError(f"kv_pages of strides {kv_pages.stride()}: pages are not contiguous")
    if qkv.stride(1) != 1:
        qkv = qkv.contiguous()
    num_tokens, total_heads = qkv.shape[0], qkv.shape[1] // head_dim
    num_heads = total_heads - 2 * num_kv_heads
    q = qkv.new_empty(num_tokens, num_heads, head_dim)
    if not num_tokens:
        return q
    delta = None if delta is None else delta.contiguous()
    inverse: torch.Tensor | None = None
    kind = _norm_kind(q_norm, head_dim)
    if kind == "whole":
        sizes = num_heads * head_dim, num_kv_heads * head_dim
        inverse = qk_inverse(qkv, *sizes, eps, delta)
    settings = tuned("kv", device_name(qkv.device), "rope_write_kv", rope_case(head_dim))
    rope_write_kernel[(num_tokens, triton.cdiv(total_heads, settings["heads"]))](
        qkv,
        cos.contiguous(),
        sin.contiguous(),
        q if q_norm is None else q_norm,
        q if k_norm is None else k_norm,
        q if inverse is None else inverse,
        q if delta is None else delta,
        q,
        kv_pages,
        page_index,
        page_offset,
        qkv.stride(0),
        kv_pages.stride(0),
        eps,
        **rope_constants(
            num_heads,
            num_kv_heads,
            head_dim,
            cos.shape[1],
            page_tokens,
            kind,
            settings["heads"],
            delta is not None,
            interleaved,
        ),
        **launch_options(settings),
    )
    return q
