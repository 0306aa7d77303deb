"""Attention on CPU: lengths, groups and windows, those that fill runs and registers and others."""

from __future__ import annotations

import pytest
import torch

from kernels.attention import cpu
from kernels.attention.metadata import attention_metadata
from kernels.attention.op import paged_attention
from kernels.attention.tile import RUN
from tests.kernels.paged_batch import PagedBatch, paged_batch

RTOL, ATOL = 1e-2, 4e-3
LENGTHS = range(1, 71)


def attend(
    batch: PagedBatch, window: int | None = None, soft_cap: float | None = None
) -> torch.Tensor:
    return paged_attention(
        batch.q,
        batch.kv_pages,
        attention_metadata(batch.queries, torch.device("cpu")),
        scale=batch.q.shape[2] ** -0.5,
        sliding_window=window,
        soft_cap=soft_cap,
    )


def decodes(
    heads: int, kv_heads: int, head_dim: int, page_tokens: int, seq_lens: range = LENGTHS
) -> PagedBatch:
    return paged_batch(
        [(seq_len, 1) for seq_len in seq_lens],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_tokens=page_tokens,
        dtype=torch.bfloat16,
        device="cpu",
        seed=heads,
    )


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype is torch.bfloat16
    torch.testing.assert_close(actual.double(), expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(3, 3, 64), (4, 2, 128), (6, 2, 96), (8, 2, 256), (7, 1, 64), (16, 2, 32), (11, 1, 160)],
)
@pytest.mark.parametrize(
    ("page_tokens", "window", "soft_cap"),
    [(16, None, None), (5, 21, None), (RUN + 3, RUN, 0.9), (1, 1, None)],
)
def test_every_length(
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_tokens: int,
    window: int | None,
    soft_cap: float | None,
) -> None:
    batch = decodes(heads, kv_heads, head_dim, page_tokens)
    expected = batch.expected(head_dim**-0.5, window, soft_cap)
    assert_close(attend(batch, window, soft_cap), expected)


@pytest.mark.parametrize("head_dim", [24, 80])
def test_rows_that_are_not_whole_lines(head_dim: int) -> None:
    batch = decodes(6, 2, head_dim, 16)
    assert_close(attend(batch, 30), batch.expected(head_dim**-0.5, 30))


def test_processors_without_wide_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has", lambda feature: False)
    batch = decodes(4, 2, 64, 16)
    assert_close(attend(batch), batch.expected(64**-0.5))


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (8, 2), (9, 3)])
def test_same_bits_in_any_batch_on_any_number_of_threads(heads: int, kv_heads: int) -> None:
    batch = decodes(heads, kv_heads, 64, 16)
    together = attend(batch, 40)
    num_threads = torch.get_num_threads()
    for count in (1, 2, 3):
        try:
            torch.set_num_threads(count)
            # Alone, its heads are split between the threads.
            for query in batch.queries[::9]:
                alone = PagedBatch(
                    batch.q[query.start : query.end],
                    batch.kv_pages,
                    [],
                    [],
                    [query._replace(start=0, end=1)],
                )
                assert torch.equal(attend(alone, 40)[0], together[query.start])
        finally:
            torch.set_num_threads(num_threads)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(3, 3, 64), (8, 2, 128), (7, 1, 96), (14, 1, 32), (4, 2, 80)],
)
@pytest.mark.parametrize(
    ("page_tokens", "window", "soft_cap"), [(16, None, None), (5, 21, None), (RUN + 3, 70, 0.9)]
)
def test_prefill(
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_tokens: int,
    window: int | None,
    soft_cap: float | None,
) -> None:
    lengths = [(length, length) for length in (2, 12, 13, 32, 33, 130)]
    batch = paged_batch(
        [*lengths, (31, 3), (100, 35), (150, 97)],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_tokens=page_tokens,
        dtype=torch.bfloat16,
        device="cpu",
    )
    expected = batch.expected(head_dim**-0.5, window, soft_cap)
    assert_close(attend(batch, window, soft_cap), expected)


def test_nan_stays_nan() -> None:
    batch = decodes(4, 2, 64, 16, range(20, 22))
    clean = attend(batch)
    batch.q[0, 1] = float("nan")
    out = attend(batch)
    assert out[0, 1].isnan().all()
    assert torch.equal(out[1], clean[1]) and torch.equal(out[0, 2:], clean[0, 2:])


def test_large_scores() -> None:
    batch = decodes(4, 2, 64, 16)
    batch.q.mul_(100)
    assert_close(attend(batch), batch.expected(64**-0.5))
