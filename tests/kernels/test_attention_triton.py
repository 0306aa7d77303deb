"""Triton attention: interpreted (tests/kernels/test_interpreted.py) and on a GPU.

All pages but the sequences' own slots are NaN, and so is the memory that outputs are made from.
"""

from __future__ import annotations

import pytest
import torch

from kernels.attention import naive
from kernels.attention.metadata import AttentionMetadata, Queries, attention_metadata
from kernels.attention.op import paged_attention
from tests.kernels.decode_buffers import DecodeBuffers
from tests.kernels.paged_batch import PagedBatch, paged_batch

pytestmark = [
    pytest.mark.usefixtures("poisoned_outputs"),
    # NumPy's word, when interpreted, for what the kernel counts on: exp of much is infinite.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]
TOLERANCES = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# Whole prompts, rests of prompts and decodes, around the edges of pages, tiles and splits.
MIXED = [(9, 9), (1, 1), (50, 18), (17, 1), (16, 16), (33, 2), (130, 1), (32, 1)]


def attend(batch: PagedBatch, **scores: float | None) -> torch.Tensor:
    metadata = attention_metadata(batch.queries, batch.q.device)
    return paged_attention(batch.q, batch.kv_pages, metadata, **scores)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_tokens", "window", "soft_cap", "dtype"),
    [
        (4, 2, 64, 8, None, None, torch.float32),
        (3, 3, 80, 16, None, None, torch.float16),
        (7, 1, 96, 8, 20, None, torch.float32),
        (4, 2, 128, 16, 37, 3.0, torch.bfloat16),
        (2, 1, 256, 32, None, 2.0, torch.float32),
        (17, 1, 16, 8, 1, None, torch.float32),
    ],
)
def test_mixed_batch(
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_tokens: int,
    window: int | None,
    soft_cap: float | None,
    dtype: torch.dtype,
    triton_device: str,
) -> None:
    batch = paged_batch(
        MIXED, heads=heads, kv_heads=kv_heads, head_dim=head_dim, page_tokens=page_tokens,
        dtype=dtype, device=triton_device,
    )  # fmt: skip
    scale = 1.5 * head_dim**-0.5
    actual = attend(batch, scale=scale, sliding_window=window, soft_cap=soft_cap)
    expected = batch.expected(scale, window, soft_cap)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def test_twins_agree_on_metadata_made_by_hand(triton_device: str) -> None:
    batch = paged_batch(
        [(40, 7), (21, 1), (12, 12), (9, 1)], heads=4, kv_heads=2, head_dim=32, page_tokens=8,
        dtype=torch.float32, device=triton_device,
    )  # fmt: skip
    batch.kv_pages.nan_to_num_()  # the torch twin reads whole pages
    metadata = attention_metadata(batch.queries, torch.device("cpu"))
    metadata = AttentionMetadata(
        tuple(
            chunk._replace(block_table=chunk.block_table.to(triton_device))
            for chunk in metadata.prefill
        ),
        metadata.decode_rows.to(triton_device),
        metadata.decode_block_tables.to(triton_device),
        metadata.decode_seq_lens.to(triton_device),
    )
    actual = paged_attention(batch.q, batch.kv_pages, metadata, scale=0.3, sliding_window=11)
    expected = naive.paged_attention(
        batch.q, batch.kv_pages, metadata, scale=0.3, sliding_window=11
    )
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("window", [None, 70])
def test_a_sequence_has_the_same_bits_in_any_batch(window: int | None, triton_device: str) -> None:
    shape = {"heads": 2, "kv_heads": 1, "head_dim": 16, "page_tokens": 8, "dtype": torch.float32}
    batch = paged_batch([(100, 1), (160, 30), (300, 1), (9, 4)], device=triton_device, **shape)
    together = attend(batch, scale=0.2, sliding_window=window)
    for query in batch.queries:
        alone = Queries(0, query.end - query.start, query.seq_len, query.block_table)
        metadata = attention_metadata([alone], batch.q.device)
        rows = batch.q[query.start : query.end]
        actual = paged_attention(rows, batch.kv_pages, metadata, scale=0.2, sliding_window=window)
        assert torch.equal(actual, together[query.start : query.end])
    # A prompt's tokens do not depend on where it was cut either.
    start, _, seq_len, table, _ = batch.queries[1]
    for first, last in ((0, 13), (13, 30)):
        part = Queries(0, last - first, seq_len - 30 + last, table)
        metadata = attention_metadata([part], batch.q.device)
        rows = batch.q[start + first : start + last]
        actual = paged_attention(rows, batch.kv_pages, metadata, scale=0.2, sliding_window=window)
        assert torch.equal(actual, together[start + first : start + last])


def test_tokens_of_a_prompt_may_be_rows_like_those_of_decode(triton_device: str) -> None:
    """As captured steps have them: each a sequence that ends there, over the prompt's pages."""
    batch = paged_batch(
        MIXED, heads=4, kv_heads=2, head_dim=32, page_tokens=8, dtype=torch.float32,
        device=triton_device,
    )  # fmt: skip
    single = [
        Queries(row, row + 1, query.seq_len - query.end + row + 1, query.block_table)
        for query in batch.queries
        for row in range(query.start, query.end)
    ]
    metadata = attention_metadata(single, batch.q.device)
    assert not metadata.prefill
    actual = paged_attention(batch.q, batch.kv_pages, metadata, scale=0.3, sliding_window=20)
    expected = batch.expected(0.3, 20)
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=2e-5)


def test_large_scores_stay_finite(triton_device: str) -> None:
    batch = paged_batch(
        [(40, 20), (70, 1)], heads=2, kv_heads=1, head_dim=16, page_tokens=8,
        dtype=torch.float32, device=triton_device,
    )  # fmt: skip
    for soft_cap in (None, 30.0):
        actual = attend(batch, scale=1000.0, soft_cap=soft_cap)
        expected = batch.expected(1000.0, None, soft_cap)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-3)


def test_padding_sequences_give_zeros(triton_device: str) -> None:
    batch = paged_batch(
        [(19, 1), (45, 1)], heads=4, kv_heads=2, head_dim=16, page_tokens=8,
        dtype=torch.float32, device=triton_device,
    )  # fmt: skip
    buffers = DecodeBuffers(4, 9, batch.q.device)
    q = torch.cat((batch.q, torch.full_like(batch.q, float("nan"))))
    for queries in (batch.queries, batch.queries[:1], batch.queries):
        buffers.fill(queries)
        actual = paged_attention(q, batch.kv_pages, buffers.metadata, scale=0.25)
        expected = batch.expected(0.25)[: len(queries)]
        torch.testing.assert_close(actual[: len(queries)].double(), expected, rtol=2e-5, atol=2e-5)
        assert bool((actual[len(queries) :] == 0).all())
    row, table = batch.queries[0][1], batch.queries[0].block_table
    for wrong in (
        [Queries(i, i + 1, 1, table) for i in range(5)],
        [Queries(1, 2, 19, table)],
        [Queries(0, row, 80, list(range(10)))],
    ):
        with pytest.raises(ValueError):
            buffers.fill(wrong)


def test_a_layer_of_the_pool_and_queries_of_a_wider_row(triton_device: str) -> None:
    """Strides that are not those of contiguous tensors."""
    batch = paged_batch(
        [(20, 5), (18, 1)], heads=2, kv_heads=1, head_dim=16, page_tokens=8,
        dtype=torch.float32, device=triton_device,
    )  # fmt: skip
    wide = torch.full((6, 5, 16), float("nan"), device=triton_device)
    wide[:, 1:3] = batch.q
    pages = torch.full((2, *batch.kv_pages.shape), float("nan"), device=triton_device)
    pages[1] = batch.kv_pages
    metadata = attention_metadata(batch.queries, batch.q.device)
    actual = paged_attention(wide[:, 1:3], pages.transpose(0, 1)[:, 1], metadata, scale=0.25)
    torch.testing.assert_close(actual.double(), batch.expected(0.25), rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="contiguous"):
        paged_attention(batch.q, batch.kv_pages[:, :, ::2], metadata, scale=1.0)


def test_what_the_kernels_cannot_hold_is_refused(triton_device: str) -> None:
    metadata = attention_metadata([], torch.device(triton_device))
    for heads, head_dim in ((1, 264), (33, 256)):
        q = torch.zeros(1, heads, head_dim, device=triton_device)
        with pytest.raises(ValueError):
            paged_attention(
                q, torch.zeros(1, 2, 8, 1, head_dim, device=triton_device), metadata, scale=1.0
            )
