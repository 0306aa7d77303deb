"""Paged attention against softmax(QK)V on each sequence alone."""

from __future__ import annotations

import pytest
import torch

from kernels.attention import naive
from kernels.attention.metadata import AttentionMetadata, Queries, attention_metadata
from kernels.attention.op import paged_attention

PAGE_TOKENS, HEAD_DIM, NUM_PAGES = 4, 40, 140
TOLERANCES = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2},
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> torch.Tensor:
    """q: the last tokens of the sequence that k and v hold in full. [tokens, heads, dim]"""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    out = torch.empty_like(q)
    for row in range(q.shape[0]):
        end = k.shape[0] - q.shape[0] + row + 1
        start = max(0, end - window) if window else 0
        scores = torch.einsum("hd,thd->ht", q[row], k[start:end]) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        out[row] = torch.einsum("ht,thd->hd", scores.softmax(-1), v[start:end])
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("soft_cap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1), (14, 1)])
def test_mixed_batch(
    heads: int,
    kv_heads: int,
    window: int | None,
    soft_cap: float | None,
    dtype: torch.dtype,
    device: str,
) -> None:
    generator = torch.Generator().manual_seed(heads)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    # (sequence length, tokens of it in this step): prefill whole, prefill rest, decodes.
    sequences = [(9, 9), (14, 6), (1, 1), (13, 1), (30, 1), (4, 2), (70, 70), (100, 35)]
    pages = torch.randperm(NUM_PAGES, generator=generator).tolist()
    shape = (NUM_PAGES, 2, PAGE_TOKENS, kv_heads, HEAD_DIM)
    kv_pages = torch.full(shape, float("nan"), device=device, dtype=dtype)
    keys, values, queries, asked, row = [], [], [], [], 0
    for seq_len, num_tokens in sequences:
        table = [pages.pop() for _ in range(-(-seq_len // PAGE_TOKENS))]
        kv_pages[table] = 0.0  # as the pool clears pages when it hands them out
        k, v = normal(seq_len, kv_heads, HEAD_DIM), normal(seq_len, kv_heads, HEAD_DIM)
        position = torch.arange(seq_len)
        page_index = torch.tensor(table)[position // PAGE_TOKENS]
        slots = page_index.to(device), (position % PAGE_TOKENS).to(device)
        kv_pages[slots[0], 0, slots[1]], kv_pages[slots[0], 1, slots[1]] = k, v
        keys.append(k)
        values.append(v)
        queries.append(normal(num_tokens, heads, HEAD_DIM))
        asked.append(Queries(row, row + num_tokens, seq_len, table))
        row += num_tokens
    metadata = attention_metadata(asked, torch.device(device))
    scale = HEAD_DIM**-0.5
    actual = paged_attention(
        torch.cat(queries),
        kv_pages,
        metadata,
        scale=scale,
        sliding_window=window,
        soft_cap=soft_cap,
    )
    expected = torch.cat(
        [
            reference(q.float(), k.float(), v.float(), scale, window, soft_cap)
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
    )
    assert actual.dtype is dtype
    torch.testing.assert_close(actual.float(), expected, **TOLERANCES[dtype])


def test_misfits_are_refused() -> None:
    kv_pages = torch.zeros(2, 2, PAGE_TOKENS, 3, HEAD_DIM)
    empty = torch.zeros(0, dtype=torch.int64)
    metadata = AttentionMetadata((), empty, empty.view(0, 0), empty)
    for q in (
        torch.zeros(1, 4, HEAD_DIM),  # 4 heads over 3 key heads
        torch.zeros(1, 3, HEAD_DIM + 1),
        torch.zeros(1, 3, HEAD_DIM).double(),
        torch.zeros(1, 3 * HEAD_DIM),
    ):
        with pytest.raises(ValueError):
            paged_attention(q, kv_pages, metadata, scale=1.0)
    with pytest.raises(ValueError, match="contiguous"):
        across = torch.zeros(2, 2, PAGE_TOKENS, HEAD_DIM, 3).transpose(3, 4)
        paged_attention(torch.zeros(1, 3, HEAD_DIM), across, metadata, scale=1.0)
    with pytest.raises(ValueError, match="soft_cap"):
        q = torch.zeros(1, 3, HEAD_DIM)
        paged_attention(q, kv_pages, metadata, scale=1.0, soft_cap=0.0)


def test_queries_may_be_part_of_something_wider() -> None:
    kv_pages = torch.randn(3, 2, PAGE_TOKENS, 1, HEAD_DIM)
    queries = [Queries(0, 1, PAGE_TOKENS + 1, [0, 1]), Queries(1, 4, 3, [2])]
    metadata = attention_metadata(queries, torch.device("cpu"))
    part = torch.randn(4, 5, HEAD_DIM)[:, 1:4]
    actual = paged_attention(part, kv_pages, metadata, scale=1.0)
    assert torch.equal(actual, paged_attention(part.clone(), kv_pages, metadata, scale=1.0))
    torch.testing.assert_close(actual, naive.paged_attention(part, kv_pages, metadata, scale=1.0))
