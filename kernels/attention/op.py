"""Attention of a mixed prefill and decode batch: checks, then the device's implementation."""

from __future__ import annotations

import torch

from kernels.attention import cpu, cpu_prefill, naive
from kernels.attention.metadata import AttentionMetadata
from kernels.gpu.dispatch import uses_triton


def paged_attention(
    q: torch.Tensor,
    kv_pages: torch.Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """As `kernels.attention.naive.paged_attention`.

    kv_pages: contiguous

    Raises: ValueError for shapes, strides or dtypes that do not fit together.
    """
    if q.dim() != 3 or kv_pages.dim() != 5 or kv_pages.shape[1] != 2:
        raise ValueError(f"q {tuple(q.shape)}, kv_pages {tuple(kv_pages.shape)}")
    if q.dtype != kv_pages.dtype or q.shape[2] != kv_pages.shape[4]:
        raise ValueError(
            f"q {q.dtype} {tuple(q.shape)}, kv_pages {kv_pages.dtype} of {kv_pages.shape[4]}"
        )
    if q.shape[1] % kv_pages.shape[3]:
        raise ValueError(f"{q.shape[1]} heads do not share {kv_pages.shape[3]} key heads evenly")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window {sliding_window} is not above 0")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap {soft_cap} is not above 0")
    if not kv_pages.is_contiguous():
        raise ValueError("kv_pages are not contiguous")
    if uses_triton(q):
        from kernels.attention import triton_attention

        return triton_attention.paged_attention(
            q, kv_pages, metadata, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap
        )
    if not cpu.supports(q):
        return naive.paged_attention(
            q, kv_pages, metadata, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap
        )
    q = q.contiguous()
    out = torch.empty_like(q)
    if metadata.prefill and cpu_prefill.supports(q):
        cpu_prefill.prefill_attention(
            out,
            q,
            kv_pages,
            metadata,
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
        )
    else:
        for chunk in metadata.prefill:
            out[chunk.start : chunk.end] = naive.prefill_attention(
                q, kv_pages, chunk, scale, sliding_window, soft_cap
            )
    if metadata.decode_rows.numel():
        cpu.decode_attention(
            out,
            q,
            kv_pages,
            metadata,
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
        )
    return out
