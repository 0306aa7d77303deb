"""Filters and penalties against transformers' processors; draws against their distribution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dataplane.channel import Sampling
from dataplane.sampling.plan import Row, SamplingPlan
from dataplane.sampling.random_numbers import uniform
from dataplane.sampling.sampler import Picks, Sampled, pick
from kernels.sampling import naive
from kernels.sampling.arguments import Filters

VOCAB = 50


def logits_of(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def ids(tokens: list[int]) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


def sample(logits: torch.Tensor, rows: list[Row]) -> list[Sampled]:
    return pick(logits, SamplingPlan.of(rows, logits.device)).read()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 0.9),
)
def test_filters_equal_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = logits_of(seed)
    expected = TemperatureLogitsWarper(temperature)(None, logits)  # pyright: ignore
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)  # pyright: ignore
    if top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(None, expected)  # pyright: ignore
    expected = MinPLogitsWarper(min_p)(None, expected)  # pyright: ignore
    filters = Filters(
        torch.tensor([temperature]),
        torch.tensor([top_k]),
        torch.tensor([top_p], dtype=torch.float32),
        torch.tensor([min_p], dtype=torch.float32),
    )
    kept = naive.probabilities(logits, filters)
    actual = kept / kept.sum(-1, keepdim=True)
    torch.testing.assert_close(actual, expected.softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("penalty", [1e-20, 1e-38, 1e-40])
def test_a_tiny_repetition_penalty_repeats(penalty: float) -> None:
    logits = torch.tensor([[8.0, 1.0, 8.0, -3.0, 2.0]])
    for seed in range(5):
        sampling = Sampling(
            max_tokens=4, temperature=1.0, top_p=0.9, repetition_penalty=penalty, seed=seed
        )
        (chosen,) = sample(logits.clone(), [Row(sampling, [0, 2, 3], 1, [])])
        assert chosen.token_id in (0, 2)


def test_draws_follow_the_distribution() -> None:
    logits = logits_of(5)
    probabilities = logits.softmax(-1)
    count = 20_000
    uniforms = torch.tensor([uniform(9, position) for position in range(count)])
    drawn = naive.draw(probabilities.expand(count, -1), uniforms.double())
    observed = torch.bincount(drawn, minlength=VOCAB) / count
    # Pearson's statistic has about VOCAB - 1 degrees of freedom; 4 standard deviations.
    statistic = (count * (observed - probabilities[0]) ** 2 / probabilities[0]).sum().item()
    assert statistic < VOCAB + 4 * math.sqrt(2 * VOCAB)


@given(u=st.floats(0.0, 1.0, exclude_max=True), seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_a_draw_never_picks_an_impossible_token(u: float, seed: int) -> None:
    probabilities = naive.probabilities(logits_of(seed), Filters(torch.ones(1), torch.tensor([3])))
    token = int(naive.draw(probabilities, torch.tensor([u], dtype=torch.float64)))
    assert probabilities[0, token] > 0


def test_uniform_is_a_pure_function_with_known_values() -> None:
    assert uniform(1, 2) == uniform(1, 2)
    values = {uniform(seed, position) for seed in range(50) for position in range(50)}
    assert len(values) == 2500
    assert all(0.0 <= value < 1.0 for value in values)
    assert abs(sum(values) / 2500 - 0.5) < 0.02
    assert uniform(2**64 - 1, 0) != uniform(0, 0)


def row(**sampling: object) -> Row:
    return Row(Sampling(max_tokens=9, **sampling), [1, 2], 1, ())  # pyright: ignore


def test_rows_do_not_influence_each_other() -> None:
    logits = logits_of(3, rows=5)
    rows = [
        row(),
        row(temperature=0.7, seed=1, top_k=5),
        row(temperature=1.3, seed=2, top_p=0.9, min_p=0.05),
        row(repetition_penalty=1.8, logprobs=3),
        row(temperature=0.0, presence_penalty=1.0),
    ]
    together = sample(logits.clone(), rows)
    for index, each in enumerate(rows):
        assert sample(logits[index : index + 1].clone(), [each]) == [together[index]]


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    logits = logits_of(4)
    expected = logits.log_softmax(-1)[0]
    (sampled,) = sample(logits.clone(), [row(temperature=2.0, top_k=1, logprobs=4)])
    assert sampled.token_id == int(logits.argmax())
    assert sampled.logprobs is not None
    assert sampled.logprobs.logprob == pytest.approx(float(expected.max()), abs=1e-5)
    assert sampled.logprobs.top_ids == expected.topk(4).indices.tolist()
    (without,) = sample(logits.clone(), [row(logprobs=0)])
    assert without.logprobs is not None and without.logprobs.top_ids == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_rows_are_told_and_alone(bad: float) -> None:
    logits = logits_of(6, rows=3)
    logits[1, 7] = bad
    rows = [row(), row(temperature=1.0, seed=5), row(temperature=1.0, seed=5)]
    sampled = sample(logits, rows)
    assert sampled[1].token_id == -1
    assert sampled[0].token_id == int(logits[0].argmax())
    assert sampled[2].token_id >= 0


def test_tiny_temperature_is_greedy() -> None:
    logits = logits_of(8) * 100
    (sampled,) = sample(logits.clone(), [row(temperature=1e-6, seed=3)])
    assert sampled.token_id == int(logits.argmax())


def test_a_token_on_the_device_counts_as_if_it_were_known() -> None:
    logits = logits_of(9, rows=3)
    sampling = [
        {"repetition_penalty": 1.7, "presence_penalty": 0.8, "logprobs": 2},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 0.8, "frequency_penalty": 1.2, "top_k": 9},
    ]
    likeliest = logits.argmax(dim=-1).tolist()  # so that penalties tell
    known = [
        row(**each)._replace(tokens=[1, 2, token])
        for each, token in zip(sampling, likeliest, strict=True)
    ]
    unread = [each._replace(tokens=[1, 2], unread=2 - at) for at, each in enumerate(known)]
    plan = SamplingPlan.of(unread, logits.device)
    picks = pick(logits.clone(), plan, previous_ids=ids(likeliest[::-1]))
    assert picks.read() == sample(logits.clone(), known)
    assert picks.read() != sample(logits.clone(), [row(**each) for each in sampling])


@pytest.mark.parametrize("temperature", [1e-45, 1e-39, 1e-37, 1e-9])
def test_the_smallest_temperatures_pick_the_likeliest(temperature: float) -> None:
    logits = logits_of(5, rows=3)
    rows = [
        Row(Sampling(max_tokens=1, temperature=temperature, seed=i), [1], 1, ()) for i in range(3)
    ]
    torch.set_flush_denormal(True)  # as in the engine
    try:
        picked = sample(logits, rows)
    finally:
        torch.set_flush_denormal(False)
    assert [each.token_id for each in picked] == logits.argmax(dim=-1).tolist()


class NoWaits(TorchFunctionMode):
    """Refuses what makes the host wait for a GPU. On CPU it tells what would be called there."""

    WAITING = ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "cpu", "tensor")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        assert name not in self.WAITING, name
        if name == "__setitem__":  # a number would go there by a copy from pageable memory
            assert isinstance(args[2], torch.Tensor), args
        return func(*args, **(kwargs or {}))


DEMANDING = Sampling(
    max_tokens=9,
    temperature=0.7,
    top_k=9,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.2,
    presence_penalty=0.1,
    frequency_penalty=0.3,
    logprobs=2,
)


def test_nothing_waits_for_the_device_before_picks_are_read() -> None:
    logits, previous = logits_of(4, rows=2), ids([9])
    rows = [
        Row(DEMANDING, [4, 5, 6], 2, banned=[7, 8], unread=0),
        Row(Sampling(max_tokens=9), [4], 1, []),
    ]
    plan = SamplingPlan.of(rows, logits.device)
    with NoWaits():
        picks = pick(logits, plan, previous_ids=previous)
    assert picks.read()[0].token_id not in (-1, 7, 8)


@pytest.mark.gpu
def test_nothing_waits_for_a_gpu_before_picks_are_read() -> None:
    logits, previous = torch.randn(2, 128_256, device="cuda") * 3, ids([9]).cuda()
    rows = [
        Row(DEMANDING, [4, 5, 6], 2, banned=[7, 8], unread=0),
        Row(Sampling(max_tokens=9), [4], 1, []),
    ]

    def picked() -> Picks:
        return pick(logits, SamplingPlan.of(rows, logits.device), previous_ids=previous)

    picked()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        picks = picked().to_host()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert picks.read()[0].token_id not in (-1, 7, 8)
