"""Log-probabilities, held against torch's own."""

from __future__ import annotations

import pytest
import torch

from kernels.sampling import cpu
from kernels.sampling.op import logprobs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def logits_of(num_rows: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab)
    return (torch.randn(num_rows, vocab, generator=generator) * 4).to(dtype)


def check(logits: torch.Tensor, rows: list[int], num_top: int) -> None:
    ours = cpu.supports(logits)  # torch's sum over 128,256 is 1e-5 off
    close = {"atol": 3e-6, "rtol": 1e-6} if ours else {"atol": 3e-5, "rtol": 1e-5}
    at = torch.tensor(rows, dtype=torch.int64)
    ids = (at * 7919) % logits.shape[1]
    before = logits.clone()
    chosen, top_ids, top = logprobs(logits, at, ids, num_top)
    exactly = logits[at].double().log_softmax(dim=-1)
    best = exactly.topk(num_top, dim=-1)
    wanted = exactly.gather(1, ids.unsqueeze(1)).squeeze(1)
    assert (chosen.dtype, top_ids.dtype, top.dtype) == (torch.float32, torch.int64, torch.float32)
    torch.testing.assert_close(chosen, wanted.float(), **close)
    torch.testing.assert_close(top, best.values.float(), **close)
    assert top_ids.shape == (len(rows), num_top)
    # Equal ones may come in any order, but each once.
    found = logits[at].gather(1, top_ids)
    assert torch.equal(found, logits[at].gather(1, best.indices))
    assert all(len(set(row)) == num_top for row in top_ids.tolist())
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 5, 511, 512, 513, 5000])
@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_as_torch_has_them(dtype: torch.dtype, vocab: int, num_top: int) -> None:
    logits = logits_of(9, vocab, dtype)
    check(logits, [*range(9)], min(num_top, vocab))
    check(logits, [7, 0, 3], min(num_top, vocab))
    check(logits, [], min(num_top, vocab))


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_over_a_real_vocabulary(dtype: torch.dtype) -> None:
    logits = logits_of(3, 128_256, dtype)
    logits[1] = torch.arange(128_256).to(dtype) / 4096  # ever higher, and many are equal
    check(logits, [0, 1, 2], 5)
    exactly = logits[1].double().log_softmax(dim=0)
    chosen, _, _ = logprobs(logits, torch.tensor([1]), torch.tensor([9]), 0)
    assert chosen.item() == pytest.approx(exactly[9].item(), abs=3e-6)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_extremes(dtype: torch.dtype) -> None:
    """Masked ones, gaps beyond what float32's exponents hold, and rows that say nothing."""
    vocab, infinite = 700, float("inf")
    rows = torch.full((5, vocab), -infinite, dtype=dtype)
    rows[0, 600] = 3.0
    rows[1] = 0.0
    rows[1, 9] = 3e38
    rows[2, :] = -3e38
    chosen, top_ids, top = logprobs(rows, torch.arange(3), torch.tensor([600, 9, 9]), 2)
    torch.testing.assert_close(chosen, torch.tensor([0.0, 0.0, -6.5510803]))
    assert top_ids[:2, 0].tolist() == [600, 9] and top[0, 1] == top[0, 1].clamp(max=-1e30)
    rows[3, 5], rows[4, 650] = float("nan"), infinite
    _, ids, _ = logprobs(rows, torch.tensor([3, 4]), torch.tensor([5, 650]), 3)
    assert ((ids >= 0) & (ids < vocab)).all()


def test_what_does_not_fit_together_is_refused() -> None:
    logits, row = torch.zeros(2, 4), torch.zeros(1, dtype=torch.int64)
    for rows, ids, num_top, said in (
        (row, row, 5, "num_top 5"),
        (row, row, -1, "num_top -1"),
        (row, row[:0], 1, "ids"),
        (row.int(), row, 1, "rows"),
    ):
        with pytest.raises(ValueError, match=said):
            logprobs(logits, rows, ids, num_top)
