"""Choosing tokens: the semantics, whichever implementation the process has."""

from __future__ import annotations

import pytest
import torch

from kernels.sampling import naive
from kernels.sampling.naive import draw
from kernels.sampling.op import likeliest


def probabilities_of(num_rows: int, vocab: int, kept: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab)
    scores = torch.randn(num_rows, vocab, generator=generator) * 3
    dropped = torch.rand(num_rows, vocab, generator=generator) > kept
    dropped[:, vocab // 2] = False
    return scores.masked_fill(dropped, float("-inf")).softmax(dim=-1)


def uniforms_of(num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_rows)
    return torch.rand(num_rows, dtype=torch.float64, generator=generator)


def one_by_one(row: list[float], uniform: float) -> int:
    target, total = uniform * sum(row), 0.0
    for token, p in enumerate(row):
        total += p
        if p > 0 and total > target:
            return token
    raise AssertionError


@pytest.mark.parametrize("vocab", [1, 5, 2048, 2049, 5000])
@pytest.mark.parametrize("kept", [1.0, 0.02])
def test_the_first_token_above_its_share_is_drawn(vocab: int, kept: float) -> None:
    probabilities, uniforms = probabilities_of(12, vocab, kept), uniforms_of(12)
    uniforms[0], uniforms[1] = 0.0, 1.0 - 2**-53
    ids = draw(probabilities, uniforms)
    assert ids.dtype == torch.int64
    for row, uniform, token in zip(probabilities, uniforms.tolist(), ids.tolist(), strict=True):
        assert token == one_by_one(row.double().tolist(), uniform) or uniform > 1.0 - 2**-50
    assert (probabilities.gather(1, ids.unsqueeze(1)) > 0).all()


def test_a_border_belongs_to_the_token_after_it() -> None:
    row = torch.tensor([[0.0, 0.25, 0.0, 0.25, 0.5, 0.0]])
    # 1 stands for a share that rounding has carried past the last sum.
    for uniform, token in [(0.0, 1), (0.2499, 1), (0.25, 3), (0.5, 4), (0.9999999, 4), (1.0, 4)]:
        assert draw(row, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]
    # Not scaled to 1, and across blocks.
    wide = torch.zeros(1, 4500)
    wide[0, 2047], wide[0, 4400] = 3.0, 1.0
    for uniform, token in [(0.0, 2047), (0.74, 2047), (0.75, 4400), (0.99, 4400), (1.0, 4400)]:
        assert draw(wide, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_no_probability_gives_some_token_of_the_vocabulary() -> None:
    rows = torch.stack([torch.zeros(9), torch.full((9,), float("nan"))])
    ids = draw(rows, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert ((ids >= 0) & (ids < 9)).all()
    assert draw(rows[:0], torch.empty(0, dtype=torch.float64)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 2, 511, 512, 513, 5000])
@pytest.mark.parametrize("num_rows", [0, 1, 3, 9])
def test_the_first_of_the_highest_logits(dtype: torch.dtype, vocab: int, num_rows: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    # Few values, so that many logits are the highest; then all below zero, and all above.
    for shift in (0, -40, 40):
        logits = torch.randint(-9, 9, (num_rows, vocab), generator=generator).to(dtype) + shift
        ids, finite = likeliest(logits)
        assert ids.dtype == torch.int64 and finite.dtype == torch.bool
        assert ids.tolist() == [row.index(max(row)) for row in logits.tolist()]
        assert finite.tolist() == [True] * num_rows
        apart = torch.cat((logits, logits + 1), dim=1)[:, :vocab]
        assert torch.equal(likeliest(apart)[0], ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_of_both_signs_are_one_logit(dtype: torch.dtype) -> None:
    rows = torch.tensor([[-1.0, -0.0, 0.0], [-1.0, 0.0, -0.0]], dtype=dtype)
    assert likeliest(rows)[0].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 600, 999])
def test_what_is_not_finite_is_said(dtype: torch.dtype, at: int) -> None:
    infinity, nan = float("inf"), float("nan")
    rows = torch.zeros(6, 1000, dtype=dtype)
    rows[0, at], rows[1, at], rows[2, at], rows[3, at] = infinity, nan, -infinity, -nan
    rows[3, at].copysign_(torch.tensor(-1.0, dtype=dtype))
    rows[4] = -infinity
    rows[5] = nan
    for each in (likeliest(rows), naive.likeliest(rows)):
        ids, finite = each
        assert finite.tolist() == [False, False, True, False, False, False]
        assert ((ids >= 0) & (ids < 1000)).all()
    assert likeliest(rows)[0][0] == at


def test_logits_of_nothing_are_refused() -> None:
    for bad in (torch.zeros(4), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match="logits"):
            likeliest(bad)
