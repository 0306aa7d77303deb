"""Penalties and filters: the semantics, whichever implementation the process has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from kernels.gpu.dispatch import interpreting
from kernels.sampling import cpu_penalties, naive
from kernels.sampling.arguments import Filters, Histories
from kernels.sampling.op import penalize, sample

SLOWLY = interpreting()
PENALIZES = [naive.penalize, cpu_penalties.penalize, penalize]


def logits_of(num_rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def histories_of(
    rows: list[tuple[int, list[int], int, int]],
    factors: list[tuple[float, float, float]],
) -> Histories:
    """rows: which, its tokens, how many are the prompt's, the unread one or -1."""
    which, tokens, num_prompt, unread = zip(*rows, strict=True)
    ends = torch.tensor([0, *map(len, tokens)]).cumsum(0)
    flat = [token for each in tokens for token in each]
    ids = [torch.tensor(each, dtype=torch.int64) for each in (which, flat)]
    more = [torch.tensor(each, dtype=torch.int64) for each in (num_prompt, unread)]
    penalties = [torch.tensor(each) for each in zip(*factors, strict=True)]
    return Histories(*cast(Any, [*ids, ends, *more, *penalties]))


def by_the_definition(
    row: list[float], tokens: list[int], output: list[int], factors: tuple[float, float, float]
) -> list[float]:
    repetition, presence, frequency = factors
    row = list(row)
    for token in set(tokens) | set(output):
        row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
    for token in set(output):
        row[token] -= presence + frequency * output.count(token)
    return row


@pytest.mark.parametrize("apply", PENALIZES)
@pytest.mark.parametrize("num_tokens", [0, 1, 40, 5000])
def test_penalties_are_those_of_the_definition(apply: Any, num_tokens: int) -> None:
    logits = logits_of(6, 97)
    generator = torch.Generator().manual_seed(num_tokens)
    factors = [(1.3, 0.0, 0.0), (1.0, 0.5, 0.25), (0.7, -0.5, 0.125), (1.0, 0.0, 0.0)]
    previous = torch.tensor([5, 96, 0])
    rows: list[tuple[int, list[int], int, int]] = []
    for at, unread in zip((4, 0, 3, 1), (-1, 2, 1, 0), strict=True):
        tokens = torch.randint(0, 97, (num_tokens + at,), generator=generator).tolist()
        rows.append((at, tokens, len(tokens) // 2, unread))
    expected = logits.tolist()
    for (at, tokens, num_prompt, unread), each in zip(rows, factors, strict=True):
        output = tokens[num_prompt:] + ([int(previous[unread])] if unread >= 0 else [])
        expected[at] = by_the_definition(expected[at], tokens, output, each)
    apply(logits, histories_of(rows, factors), previous)
    torch.testing.assert_close(logits, torch.tensor(expected))


@pytest.mark.parametrize("apply", PENALIZES)
@pytest.mark.parametrize("penalty", [0.1, 0.9, 1.7, 5.0])
def test_repetition_equals_transformers(apply: Any, penalty: float) -> None:
    logits, tokens = logits_of(1, 50), [3, 7, 3, 44]
    ids: Any = torch.tensor([tokens])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    apply(logits, histories_of([(0, tokens, 3, -1)], [(penalty, 0.0, 0.0)]))
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("apply", PENALIZES)
def test_no_penalty_makes_an_infinite_logit(apply: Any) -> None:
    logits = torch.tensor([[8.0, -3.0, 1.0, float("-inf")]])
    apply(logits, histories_of([(0, [0, 1, 3], 3, -1)], [(1e-38, 0.0, 0.0)]))
    assert logits[0, 0] == torch.finfo(torch.float32).max and logits[0, 1] <= 0
    assert logits[0, 2:].tolist() == [1.0, float("-inf")]


def filters_of(
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, n: int = 1
) -> Filters:
    """Those that keep all are left out."""
    return Filters(
        torch.full((n,), temperature),
        torch.full((n,), top_k) if top_k else None,
        torch.full((n,), top_p) if top_p < 1.0 else None,
        torch.full((n,), min_p) if min_p else None,
    )


def each_of(filters: Filters, change: Callable[[torch.Tensor], torch.Tensor]) -> Filters:
    values = {each.name: getattr(filters, each.name) for each in dataclasses.fields(filters)}
    chosen = {name: change(each) for name, each in values.items() if each is not None}
    return Filters(**cast(Any, chosen))


def shares(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def check_draws(logits: torch.Tensor, filters: Filters, count: int) -> None:
    """One row, drawn from at `count` shares."""
    many = each_of(filters, lambda values: values.expand(count).contiguous())
    uniforms = shares(count)
    drawn = sample(logits, torch.zeros(count, dtype=torch.int64), many, uniforms)
    kept = naive.probabilities(logits, filters).double()
    ends = (kept.cumsum(-1) / kept.sum())[0]
    # Whose borders rounding may move.
    near = (ends.unsqueeze(0) - uniforms.unsqueeze(1)).abs().amin(1) < 1e-5
    expected = naive.draw(kept.float().expand(count, -1), uniforms)
    assert torch.equal(drawn[~near], expected[~near])
    assert near.float().mean() < 0.2
    assert (kept[0, drawn] > 0).all()


@settings(max_examples=8 if SLOWLY else 60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(1, 300),
    scale=st.floats(0.1, 20.0),
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, 320),
    top_p=st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_draws_are_those_of_the_twin(
    seed: int,
    vocab: int,
    scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    dtype: torch.dtype,
) -> None:
    logits = logits_of(1, vocab, seed, scale).to(dtype)
    check_draws(logits, filters_of(temperature, top_k, top_p, min_p), 16 if SLOWLY else 500)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "filters",
    [
        filters_of(0.7),
        filters_of(0.7, top_k=50),
        filters_of(1.1, top_p=0.95),
        filters_of(0.8, top_k=40, top_p=0.9, min_p=0.02),
    ],
)
def test_draws_over_a_real_vocabulary(dtype: torch.dtype, filters: Filters) -> None:
    vocab, count = (3001, 3) if SLOWLY else (32_003, 64)
    check_draws(logits_of(1, vocab).to(dtype), filters, count)


def drawn(logits: list[float], filters: Filters, uniforms: torch.Tensor) -> list[int]:
    """From one row, at each share."""
    count = len(uniforms)
    many = each_of(filters, lambda values: values.expand(count).contiguous())
    rows = torch.zeros(count, dtype=torch.int64)
    return sample(torch.tensor([logits]), rows, many, uniforms).tolist()


def kept_of(logits: list[float], filters: Filters) -> set[int]:
    return set(drawn(logits, filters, shares(20 if SLOWLY else 400)))


def test_equal_logits_stay_together() -> None:
    logits = [1.0, 2.0, 1.0, 0.0, 1.0, -0.0]
    assert kept_of(logits, filters_of(top_k=1)) == {1}
    assert kept_of(logits, filters_of(top_k=2)) == {0, 1, 2, 4}
    assert kept_of(logits, filters_of(top_k=4)) == {0, 1, 2, 4}
    assert kept_of(logits, filters_of(top_k=5)) == {0, 1, 2, 3, 4, 5}, "zeros of both signs"
    assert kept_of(logits, filters_of(top_k=6)) == set(range(6))
    assert kept_of(logits, filters_of(top_k=1 << 40)) == set(range(6))
    # e^2 / (e^2 + 3 e + 2) is 0.42.
    assert kept_of(logits, filters_of(top_p=0.4)) == {1}
    assert kept_of(logits, filters_of(top_p=0.45)) == {0, 1, 2, 4}


def test_a_border_belongs_to_the_token_after_it() -> None:
    infinity = float("-inf")
    logits = [infinity, 1.0, infinity, 1.0, 1.0, 1.0, infinity]
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.75, 1.0 - 2**-53], dtype=torch.float64)
    for filters in (filters_of(), filters_of(top_k=3, top_p=0.9)):
        assert drawn(logits, filters, uniforms) == [1, 1, 3, 4, 5, 5]


def test_filters_follow_one_another() -> None:
    logits = [3.0, 2.0, 1.0, 0.0]
    # Of the first two the likelier has 0.73, of all four 0.64.
    assert kept_of(logits, filters_of(top_p=0.7)) == {0, 1}
    assert kept_of(logits, filters_of(top_k=2, top_p=0.7)) == {0}
    # min_p is of the highest: e^-1 is 0.37, at temperature 2 it is 0.61.
    assert kept_of(logits, filters_of(min_p=0.4)) == {0}
    assert kept_of(logits, filters_of(2.0, min_p=0.4)) == {0, 1}
    assert kept_of(logits, filters_of(min_p=1.0)) == {0}


def test_what_is_ruled_out_is_never_drawn() -> None:
    infinity = float("-inf")
    logits = [infinity, 0.0, infinity, 1.0, infinity]
    for filters in (filters_of(), filters_of(top_k=4), filters_of(5.0, top_p=0.999)):
        assert kept_of(logits, filters) == {1, 3}


def test_rows_are_chosen_and_filtered_each_by_itself() -> None:
    logits = logits_of(5, 700, seed=2)
    rows = torch.tensor([4, 0, 4, 2])
    filters = Filters(
        torch.tensor([1.0, 0.5, 2.0, 1.0]),
        torch.tensor([0, 3, 5, 0]),
        torch.tensor([0.9, 1.0, 0.5, 1.0]),
        torch.tensor([0.0, 0.0, 0.0, 0.2]),
    )
    uniforms = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    together = sample(logits, rows, filters, uniforms)
    for at, row in enumerate(rows.tolist()):
        own = each_of(filters, lambda values, at=at: values[at : at + 1])
        alone = sample(
            logits[row : row + 1],
            torch.zeros(1, dtype=torch.int64),
            own,
            uniforms[at:][:1],
        )
        assert alone.tolist() == together[at : at + 1].tolist()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("filters", [filters_of(), filters_of(top_k=3), filters_of(top_p=0.5)])
def test_a_row_that_says_nothing_gives_some_token(bad: float, filters: Filters) -> None:
    for logits in ([bad] * 9, [0.0, bad, 1.0]):
        assert all(0 <= token < len(logits) for token in drawn(logits, filters, shares(3)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("temperature", [1e-38, 1e-20, 1e-9])
def test_the_smallest_temperatures_give_the_likeliest(temperature: float) -> None:
    assert kept_of([3.0, 2.0, 3.0001, -5.0], filters_of(temperature)) == {2}


def test_none_is_none() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert sample(torch.zeros(2, 3), none, Filters(torch.zeros(0)), none.double()).shape == (0,)


def test_what_does_not_fit_is_refused() -> None:
    logits, rows = torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64)
    filters, uniforms = filters_of(top_k=2, top_p=0.5, min_p=0.1), torch.zeros(1).double()
    for logits_, rows_, filters_, uniforms_ in [
        (logits[0], rows, filters, uniforms),
        (logits[:, :0], rows, filters, uniforms),
        (logits, rows.int(), filters, uniforms),
        (logits, rows.unsqueeze(0), filters, uniforms),
        (logits, rows, filters, uniforms.float()),
        (logits, rows, filters, torch.zeros(2).double()),
        *(
            (logits, rows, dataclasses.replace(filters, **{name: bad}), uniforms)
            for name, bad in [
                ("temperature", torch.ones(2)),
                ("top_k", torch.ones(1)),
                ("top_p", torch.ones(1).double()),
                ("min_p", torch.ones(1, 1)),
            ]
        ),
    ]:
        with pytest.raises(ValueError, match=r"logits|rows|uniforms|temperature|top_|min_p"):
            sample(logits_, rows_, filters_, uniforms_)


def test_histories_that_do_not_fit_are_refused() -> None:
    good = histories_of([(0, [1, 2], 1, -1)], [(1.5, 0.0, 0.0)])
    penalize(torch.zeros(1, 3), good)
    one_more = torch.zeros(2, dtype=torch.int64)
    for field, bad in [
        ("indptr", one_more[:1]),
        ("num_prompt", one_more),
        ("unread", one_more),
        ("tokens", one_more.int()),
        ("repetition", torch.ones(2)),
        ("presence", torch.ones(1).double()),
        ("frequency", torch.ones(1, 1)),
    ]:
        with pytest.raises(ValueError, match=field):
            penalize(torch.zeros(1, 3), dataclasses.replace(good, **{field: bad}))
    with pytest.raises(ValueError, match="float32"):
        penalize(torch.zeros(1, 3).bfloat16(), good)
    with pytest.raises(ValueError, match="previous_ids"):
        penalize(torch.zeros(1, 3), good, one_more.int())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_draws_on_a_gpu(dtype: torch.dtype) -> None:
    num_rows, vocab = 33, 128_256
    logits = logits_of(num_rows, vocab).to("cuda", dtype)
    rows = torch.arange(num_rows, device="cuda").flip(0)
    at = torch.arange(num_rows, device="cuda")
    filters = Filters(
        0.5 + at / 20.0,
        torch.where(at % 2 == 0, at * 10, 0),
        torch.where(at % 3 == 0, 0.3 + at / 60.0, 1.0).float(),
        torch.where(at % 5 == 0, 0.05, 0.0).float(),
    )
    uniforms = shares(num_rows).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = sample(logits, rows, filters, uniforms)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    kept = naive.probabilities(logits[rows], filters).double()
    ends = kept.cumsum(-1) / kept.sum(-1, keepdim=True)
    near = (ends - uniforms.unsqueeze(1)).abs().amin(1) < 1e-6
    expected = naive.draw(kept.float(), uniforms)
    assert torch.equal(found[~near], expected[~near]) and near.float().mean() < 0.5
    # Where a border of a filter is near, too, what is drawn is still among what is kept.
    assert (kept.gather(1, found.unsqueeze(1)) > 0).all()


@pytest.mark.gpu
def test_penalties_on_a_gpu_do_not_make_the_host_wait() -> None:
    histories = histories_of([(1, [3, 7, 3], 2, 0), (0, [5], 1, -1)], [(1.5, 0.5, 0.1)] * 2)
    logits, previous = logits_of(3, 500), torch.tensor([7])
    expected = logits.clone()
    penalize(expected, histories, previous)
    there = dataclasses.replace(
        histories, **{key: values.cuda() for key, values in vars(histories).items()}
    )
    found, previous = logits.cuda(), previous.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        penalize(found, there, previous)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected)
