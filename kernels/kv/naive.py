"""Rotary embedding and KV writes: plain torch."""

from __future__ import annotations

import torch

from kernels.fused.naive import layer_norm, rms_norm


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
    interleaved: bool = False,
) -> torch.Tensor:
    """Rotates queries and keys, and stores keys and values in the tokens' slots, in place.

    Semantics, with q, k, v the heads of qkv in this order:
        q, k = rope(norm(q)), rope(norm(k)), norm only with q_norm and k_norm
        kv_pages[page_index, 0, page_offset] = k;  kv_pages[page_index, 1, page_offset] = v

    qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
    cos, sin: [num_tokens, rotary_dim] in qkv's dtype, both halves the same angles; the first
        rotary_dim elements of each head are rotated
    kv_pages: [num_pages, 2, page_tokens, num_kv_heads, head_dim]
    page_index, page_offset: [num_tokens] int64; slots are distinct
    q_norm, k_norm: RMSNorm of each head, [head_dim]; or of all of q's and all of k's elements
        together, [num_heads * head_dim] and [num_kv_heads * head_dim]; or LayerNorm without shift
        of each head, [num_heads, head_dim] and [num_kv_heads, head_dim]
    interleaved: which elements are rotated together, as in `apply_rope`
    Returns q, [num_tokens, num_heads, head_dim]
    """
    num_kv_heads, head_dim = kv_pages.shape[3:]
    kv_size = num_kv_heads * head_dim
    q, k, v = (
        part.reshape(qkv.shape[0], -1, head_dim)
        for part in qkv.split((qkv.shape[1] - 2 * kv_size, kv_size, kv_size), dim=-1)
    )
    if q_norm is not None and k_norm is not None:
        q, k = _normed(q, q_norm, eps), _normed(k, k_norm, eps)
    kv_pages[page_index, 0, page_offset] = apply_rope(k, cos, sin, interleaved=interleaved)
    kv_pages[page_index, 1, page_offset] = v
    return apply_rope(q, cos, sin, interleaved=interleaved)


def _normed(heads: torch.Tensor, norm: torch.Tensor, eps: float) -> torch.Tensor:
    if norm.dim() == 2:
        ones = torch.ones_like(norm[0])
        centred = layer_norm(heads.float(), torch.stack((ones, 0 * ones)).float(), eps)
        return (centred * norm).to(heads.dtype)
    return rms_norm(heads.reshape(len(heads), -1, len(norm)), norm, eps).view_as(heads)


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    """Rotates the two halves of each head (Su et al. 2021, in the half-split form of GPT-NeoX), or
    `interleaved` each element with the next one (as in the paper).

    x: [num_tokens, num_heads, head_dim]
    cos, sin: [num_tokens, rotary_dim] in x's dtype; elements after rotary_dim pass as they are
    """
    rotary_dim = cos.shape[-1]
    turned, half = x[..., :rotary_dim], rotary_dim // 2
    if interleaved:
        swapped = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
        cos, sin = (each[:, :half].repeat_interleave(2, dim=-1) for each in (cos, sin))
    else:
        swapped = torch.cat((-turned[..., half:], turned[..., :half]), dim=-1)
    rotated = turned * cos.unsqueeze(1) + swapped * sin.unsqueeze(1)
    if rotary_dim == x.shape[-1]:
        return rotated
    return torch.cat((rotated, x[..., rotary_dim:]), dim=-1)
