"""Batches over poisoned pages: what an attention kernel may not read, and not leave unwritten, is
NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.attention.metadata import Queries


@dataclass(frozen=True)
class PagedBatch:
    """Everything but `queries` on the device."""

    q: torch.Tensor  # [num_tokens, num_heads, head_dim]
    kv_pages: torch.Tensor  # [num_pages, 2, page_tokens, num_kv_heads, head_dim]
    keys: list[torch.Tensor]  # per sequence [seq_len, num_kv_heads, head_dim]
    values: list[torch.Tensor]
    queries: list[Queries]

    def expected(
        self, scale: float, window: int | None = None, soft_cap: float | None = None
    ) -> torch.Tensor:
        """In float64 from each sequence's own keys alone."""
        out = torch.empty(self.q.shape, dtype=torch.float64, device=self.q.device)
        for query, k, v in zip(self.queries, self.keys, self.values, strict=True):
            group = self.q.shape[1] // k.shape[1]
            k, v = (each.double().repeat_interleave(group, 1) for each in (k, v))
            scores = torch.einsum("qhd,khd->hqk", self.q[query.start : query.end].double(), k)
            scores = scores * scale
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            key = torch.arange(query.seq_len, device=self.q.device)
            position = key[query.seq_len - (query.end - query.start) :].unsqueeze(1)
            seen = key <= position
            if window is not None:
                seen &= key > position - window
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            out[query.start : query.end] = torch.einsum("hqk,khd->qhd", weights, v)
        return out


def paged_batch(
    sequences: Sequence[tuple[int, int]],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_tokens: int,
    dtype: torch.dtype,
    device: str,
    seed: int = 0,
) -> PagedBatch:
    """sequences: (sequence length, its last tokens that are in this batch), in batch order."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    blocks = [-(-seq_len // page_tokens) for seq_len, _ in sequences]
    free = torch.randperm(2 * sum(blocks) + 1, generator=generator).tolist()
    shape = (len(free), 2, page_tokens, kv_heads, head_dim)
    kv_pages = torch.full(shape, float("nan"), dtype=dtype, device=device)
    keys, values, queries, row = [], [], [], 0
    for (seq_len, num_tokens), num_blocks in zip(sequences, blocks, strict=True):
        table = [free.pop() for _ in range(num_blocks)]
        k, v = normal(seq_len, kv_heads, head_dim), normal(seq_len, kv_heads, head_dim)
        position = torch.arange(seq_len)
        page = torch.tensor(table)[position // page_tokens].to(device)
        slot = (position % page_tokens).to(device)
        kv_pages[page, 0, slot], kv_pages[page, 1, slot] = k, v
        keys.append(k)
        values.append(v)
        queries.append(Queries(row, row + num_tokens, seq_len, table))
        row += num_tokens
    return PagedBatch(normal(row, heads, head_dim), kv_pages, keys, values, queries)
