from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks.errors import WorkloadError
from benchmarks.load.generators import (
    closed,
    oversubscribed,
    slora,
    truefoundry,
    with_warm_up,
)
from benchmarks.load.workload import FIRST_TOKEN_ID, Request, prompt_of

NAMES = [f"a{index}" for index in range(100)]


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_slora_arrivals_have_the_rate_and_the_variation(cv: float) -> None:
    workload = slora(NAMES, rate=50.0, cv=cv, duration_s=2000.0, seed=3)
    at_s = np.array([request.at_s for request in workload.phases[0].requests])
    assert len(at_s) == 100_000
    gaps = np.diff(at_s)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / 50.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_slora_alpha_1_is_uniform_over_the_adapters() -> None:
    requests = slora(NAMES, rate=100.0, duration_s=1000.0, alpha=1.0).phases[0].requests
    counts = Counter(request.adapter for request in requests)
    assert set(counts) == set(NAMES)
    assert max(counts.values()) < 1.25 * min(counts.values())


def test_slora_small_alpha_sends_most_to_the_first() -> None:
    requests = slora(NAMES, rate=100.0, duration_s=1000.0, alpha=0.1).phases[0].requests
    counts = Counter(request.adapter for request in requests)
    # P(index < 1) = (1 / 100) ** 0.1
    assert counts["a0"] / len(requests) == pytest.approx(0.01**0.1, abs=0.01)
    assert counts["a0"] > counts["a1"] > counts["a50"]


def test_slora_lengths_are_uniform_below_the_upper_end() -> None:
    requests = slora(NAMES, rate=50.0, duration_s=400.0, input_tokens=(8, 512)).phases[0].requests
    lengths = np.array([request.num_prompt_tokens for request in requests])
    assert (lengths.min(), lengths.max()) == (8, 511)
    assert lengths.mean() == pytest.approx((8 + 511) / 2, rel=0.02)


def test_slora_is_a_function_of_its_seed() -> None:
    assert slora(NAMES, seed=5) == slora(NAMES, seed=5)
    assert slora(NAMES, seed=5) != slora(NAMES, seed=6)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.0},
        {"cv": -1.0},
        {"rate": 0.0},
        {"duration_s": float("nan")},
        {"input_tokens": (8, 8)},
        {"output_tokens": (0, 8)},
    ],
)
def test_slora_refuses_what_is_no_workload(changes: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError) as caught:
        slora(NAMES, **changes)
    (field,) = changes
    assert caught.value.metadata["field"].replace(" ", "_") in field


def test_truefoundry_takes_the_adapters_in_turn() -> None:
    (phase,) = truefoundry(["x", "y", "z"], num_requests=7).phases
    assert [request.adapter for request in phase.requests] == ["x", "y", "z", "x", "y", "z", "x"]
    assert {(r.num_prompt_tokens, r.num_output_tokens) for r in phase.requests} == {(70, 10)}
    assert phase.concurrency == 1


def test_closed_with_as_many_adapters_as_streams_runs_all_different_ones() -> None:
    (phase,) = closed(NAMES[:8], concurrency=8, num_requests=32).phases
    for start in range(0, 32, 8):
        assert len({request.adapter for request in phase.requests[start : start + 8]}) == 8


def test_without_adapters_all_is_for_the_base_model() -> None:
    for workload in (closed([]), truefoundry([]), slora([])):
        assert {request.adapter for request in workload.phases[0].requests} == {""}
        assert workload.parameters["num_adapters"] == 0


def test_oversubscribed_takes_turns() -> None:
    workload = oversubscribed(NAMES[:8], num_fitting=4, num_requests=16, rounds=2)
    assert [phase.name for phase in workload.phases] == ["fits", "over", "fits", "over"]
    used = [{request.adapter for request in phase.requests} for phase in workload.phases]
    assert used[0] == set(NAMES[:4]) and used[1] == set(NAMES[:8])


@pytest.mark.parametrize("num_fitting", [0, 8, 9])
def test_oversubscribed_needs_more_adapters_than_fit(num_fitting: int) -> None:
    with pytest.raises(WorkloadError):
        oversubscribed(NAMES[:8], num_fitting=num_fitting)


@pytest.mark.parametrize("field", ["concurrency", "num_requests", "input_tokens", "output_tokens"])
def test_closed_refuses_nothing(field: str) -> None:
    with pytest.raises(WorkloadError):
        closed(NAMES, **{field: 0})


def test_warm_up_uses_each_adapter_once_and_is_not_counted() -> None:
    workload = with_warm_up(closed(NAMES[:3]), NAMES[:3])
    warm_up, counted = workload.phases
    assert [request.adapter for request in warm_up.requests] == NAMES[:3]
    assert (warm_up.counted, counted.counted) == (False, True)


def test_prompts_are_reproducible_in_range_and_share_no_prefix() -> None:
    requests = [Request(index, "", 64, 1) for index in range(50)]
    prompts = [prompt_of(0, request, seed=1, vocab_size=300) for request in requests]
    assert prompts == [prompt_of(0, request, seed=1, vocab_size=300) for request in requests]
    assert all(len(prompt) == 64 for prompt in prompts)
    ids = {token for prompt in prompts for token in prompt}
    assert min(ids) == FIRST_TOKEN_ID and max(ids) == 299
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 50
    assert prompt_of(1, requests[0], seed=1, vocab_size=300) != prompts[0]
    assert prompt_of(0, requests[0], seed=2, vocab_size=300) != prompts[0]
