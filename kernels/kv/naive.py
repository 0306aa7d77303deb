"""Rotary embedding and KV writes: plain torch."""

from __future__ import annotations

import torch


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the two halves of each head (Su et al. 2021, in the half-split form of GPT-NeoX).

    x: [num_tokens, num_heads, head_dim]
    cos, sin: [num_tokens, head_dim] in x's dtype; both halves repeat the same angles
    """
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(1) + rotated * sin.unsqueeze(1)


def write_kv(
    kv_pages: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    page_index: torch.Tensor,
    page_offset: torch.Tensor,
) -> None:
    """Stores each token's key and value in its slot, in place.

    kv_pages: [num_pages, 2, page_tokens, num_kv_heads, head_dim]
    k, v: [num_tokens, num_kv_heads, head_dim]
    page_index, page_offset: [num_tokens] int64; slots are distinct
    """
    kv_pages[page_index, 0, page_offset] = k
    kv_pages[page_index, 1, page_offset] = v
