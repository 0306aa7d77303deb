"""Paged attention by Triton kernels: CUDA and ROCm."""

from __future__ import annotations

import torch

from kernels.attention.metadata import AttentionMetadata, ragged_prefill
from kernels.attention.triton_decode import decode
from kernels.attention.triton_prefill import prefill
from kernels.attention.triton_scores import Scores, block_dim

MAX_HEAD_DIM = 256
MAX_GROUP_BYTES = 32 * 1024  # queries of one key head, one token: there is room everywhere


def paged_attention(
    q: torch.Tensor,
    kv_pages: torch.Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """As `kernels.attention.naive.paged_attention`. Sums in float32. A sequence's rows do not
    depend on what else is in the batch, to the last bit.

    Raises: ValueError for heads that are too large, too many, or not contiguous.
    """
    _, _, page_tokens, num_kv_heads, head_dim = kv_pages.shape
    group = q.shape[1] // num_kv_heads
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head_dim {head_dim} is above {MAX_HEAD_DIM}")
    most = MAX_GROUP_BYTES // (block_dim(head_dim) * q.itemsize)
    if group > most:
        raise ValueError(
            f"{group} heads share a key head; of {head_dim} {q.dtype} elements at most {most} may"
        )
    if not kv_pages[0].is_contiguous():
        raise ValueError(f"kv_pages of strides {kv_pages.stride()}: pages are not contiguous")
    if q.stride()[1:] != (head_dim, 1):
        q = q.contiguous()
    scores = Scores(num_kv_heads, group, head_dim, page_tokens, scale, sliding_window, soft_cap)
    out = q.new_empty(q.shape)
    if metadata.prefill:
        ragged = metadata.ragged or ragged_prefill(metadata.prefill, q.device)
        prefill(out, q, kv_pages, ragged, scores)
    if metadata.decode_rows.numel():
        decode(out, q, kv_pages, metadata, scores)
    return out
