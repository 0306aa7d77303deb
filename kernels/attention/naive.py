"""Attention over KV pages: plain torch. The reference, and what runs on CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.attention.metadata import AttentionMetadata, PrefillChunk


def paged_attention(
    q: torch.Tensor,
    kv_pages: torch.Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Causal attention of every token of the batch over its own sequence.

    Semantics, for a token at position p of its sequence:
        out = softmax(cap(scale * q @ K[lo:p+1].T)) @ V[lo:p+1],
        lo = 0, or max(0, p + 1 - sliding_window)
        cap(s) = s, or soft_cap * tanh(s / soft_cap)

    q: [num_tokens, num_heads, head_dim]
    kv_pages: [num_pages, 2, page_tokens, num_kv_heads, head_dim]; this step's keys are written
    Returns [num_tokens, num_heads, head_dim].
    """
    out = torch.empty_like(q)
    for chunk in metadata.prefill:
        out[chunk.start : chunk.end] = prefill_attention(
            q, kv_pages, chunk, scale, sliding_window, soft_cap
        )
    if metadata.decode_rows.numel():
        out[metadata.decode_rows] = _decode(q, kv_pages, metadata, scale, sliding_window, soft_cap)
    return out


def prefill_attention(
    q: torch.Tensor,
    kv_pages: torch.Tensor,
    chunk: PrefillChunk,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> torch.Tensor:
    """As `paged_attention`, of one chunk: [end - start, num_heads, head_dim]."""
    num_tokens, num_kv_heads = chunk.end - chunk.start, kv_pages.shape[3]
    kv = kv_pages.index_select(0, chunk.block_table)  # [blocks, 2, page_tokens, kv_heads, dim]
    k = kv[:, 0].reshape(-1, num_kv_heads, q.shape[-1])[: chunk.seq_len].transpose(0, 1)
    v = kv[:, 1].reshape(-1, num_kv_heads, q.shape[-1])[: chunk.seq_len].transpose(0, 1)
    queries = q[chunk.start : chunk.end].transpose(0, 1)
    mask = None
    causal = num_tokens == chunk.seq_len and sliding_window is None and soft_cap is None
    if not causal and (num_tokens > 1 or sliding_window is not None):
        key = torch.arange(chunk.seq_len, device=q.device)
        position = key[chunk.seq_len - num_tokens :].unsqueeze(1)
        mask = key <= position
        if sliding_window is not None:
            mask &= key > position - sliding_window
    if soft_cap is not None:
        # As in decode, the heads that share a key head stand as its queries.
        grouped = queries.reshape(num_kv_heads, -1, q.shape[-1])
        if mask is not None:
            mask = mask.repeat(queries.shape[0] // num_kv_heads, 1)
        capped = _capped_attention(grouped, k, v, mask, scale, soft_cap)
        return capped.reshape(queries.shape).transpose(0, 1)
    out = F.scaled_dot_product_attention(
        queries.unsqueeze(0),
        k.unsqueeze(0),
        v.unsqueeze(0),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=queries.shape[0] != num_kv_heads,
    )
    return out.squeeze(0).transpose(0, 1)


def _decode(
    q: torch.Tensor,
    kv_pages: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> torch.Tensor:
    num_decode, max_blocks = metadata.decode_block_tables.shape
    _, _, page_tokens, num_kv_heads, head_dim = kv_pages.shape
    kv = kv_pages.index_select(0, metadata.decode_block_tables.view(-1))
    kv = kv.view(num_decode, max_blocks, 2, page_tokens, num_kv_heads, head_dim)
    k = kv[:, :, 0].reshape(num_decode, -1, num_kv_heads, head_dim).transpose(1, 2)
    v = kv[:, :, 1].reshape(num_decode, -1, num_kv_heads, head_dim).transpose(1, 2)
    # The heads that share a key head stand as its queries: no repeated keys.
    queries = q[metadata.decode_rows].view(num_decode, num_kv_heads, -1, head_dim)
    key = torch.arange(max_blocks * page_tokens, device=q.device)
    seq_lens = metadata.decode_seq_lens.unsqueeze(1)
    mask = key < seq_lens
    if sliding_window is not None:
        mask &= key >= seq_lens - sliding_window
    mask = mask.view(num_decode, 1, 1, -1)
    if soft_cap is not None:
        out = _capped_attention(queries, k, v, mask, scale, soft_cap)
    else:
        out = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=scale)
    return out.reshape(num_decode, -1, head_dim)


def _capped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    soft_cap: float,
) -> torch.Tensor:
    """Softmax in float32. q: […, queries, dim]; k, v: […, keys, dim]; mask: True where a key
    counts, broadcast to […, queries, keys]."""
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * (scale / soft_cap)
    scores = scores.tanh_() * soft_cap
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)
