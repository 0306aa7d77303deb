"""Masks of logits: the semantics, whichever implementation the process has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.gpu.dispatch import interpreting
from kernels.sampling import cpu_mask, naive
from kernels.sampling.arguments import Filters
from kernels.sampling.op import likeliest, mask, sample

MASKS = [naive.mask, cpu_mask.mask, mask]
VOCABS = [1, 31, 32, 97, 1500] if interpreting() else [1, 31, 32, 97, 1500, 70_001]


def bits_of(allowed: torch.Tensor) -> torch.Tensor:
    """[n, vocab] bool to [n, ceil(vocab / 32)] int32; bits beyond the vocabulary are set."""
    count, vocab = allowed.shape
    words = -(-vocab // 32)
    padded = torch.ones(count, words * 32, dtype=torch.int64)
    padded[:, :vocab] = allowed
    weights = 1 << torch.arange(32)
    return (padded.view(count, words, 32) * weights).sum(-1).to(torch.int32)


def random_case(vocab: int, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(5, vocab, generator=generator)
    rows = torch.tensor([3, 0, 4])
    allowed = torch.rand(3, vocab, generator=generator) < share
    allowed[0] = True
    allowed[1, : vocab // 2] = False
    return logits, rows, allowed


@pytest.mark.parametrize("apply", MASKS)
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("share", [0.02, 0.9])
def test_only_what_the_bits_leave_out_is_blanked(apply: Any, vocab: int, share: float) -> None:
    logits, rows, allowed = random_case(vocab, share)
    expected = logits.clone()
    for row, keeps in zip(rows.tolist(), allowed, strict=True):
        expected[row][~keeps] = float("-inf")
    apply(logits, rows, bits_of(allowed))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}])
def test_filters_see_masked_logits(filters: dict[str, float]) -> None:
    """The likeliest tokens are masked: what is kept of the rest is as if they were not there."""
    vocab = 97
    logits = torch.arange(vocab, dtype=torch.float32).flip(0).repeat(40, 1) / 4
    allowed = (torch.arange(vocab) >= 60) & (torch.arange(vocab) % 3 == 0)
    rows = torch.arange(40)
    mask(logits, rows, bits_of(allowed.expand(40, vocab)))
    assert likeliest(logits)[0].tolist() == [60] * 40
    values = {
        name: torch.full((40,), value, dtype=torch.int64 if name == "top_k" else torch.float32)
        for name, value in filters.items()
    }
    shares = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    drawn = set(sample(logits, rows, Filters(torch.ones(40), **values), shares).tolist())
    assert drawn <= set(torch.where(allowed)[0].tolist())
    weights = torch.exp(-torch.arange(0, vocab - 60, 3) / 4.0)
    kept = {
        "top_k": 3,
        "top_p": int((weights.cumsum(0) < 0.5 * weights.sum()).sum()) + 1,
        "min_p": int((weights >= 0.2).sum()),
    }
    for name in filters:
        assert drawn == set(range(60, 60 + 3 * kept[name], 3))


def test_masks_that_do_not_fit_are_refused() -> None:
    logits, rows = torch.zeros(2, 40), torch.tensor([1])
    bits = torch.zeros(1, 2, dtype=torch.int32)
    mask(logits, rows, bits)
    for logits_, rows_, bits_ in [
        (logits.bfloat16(), rows, bits),
        (logits, rows.int(), bits),
        (logits, rows, bits[:, :1]),
        (logits, rows, bits.expand(2, 2)),
        (logits, rows, bits.long()),
    ]:
        with pytest.raises(ValueError, match=r"logits|rows|bits"):
            mask(logits_, rows_, bits_)


@pytest.mark.gpu
def test_masks_on_a_gpu_do_not_make_the_host_wait() -> None:
    logits, rows, allowed = random_case(128_256, 0.1)
    expected = logits.clone()
    naive.mask(expected, rows, bits_of(allowed))
    found, there, bits = logits.cuda(), rows.cuda(), bits_of(allowed).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask(found, there, bits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), expected)
