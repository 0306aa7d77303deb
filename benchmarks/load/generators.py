"""The workloads. Pure functions: the same arguments give the same requests.

`adapters` are names; without any, all requests go to the base model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.errors import WorkloadError
from benchmarks.load.workload import Phase, Request, Workload

BASE_ONLY = ("",)


def slora(
    adapters: Sequence[str],
    *,
    alpha: float = 1.0,
    cv: float = 1.0,
    rate: float = 2.0,
    duration_s: float = 60.0,
    input_tokens: tuple[int, int] = (8, 512),
    output_tokens: tuple[int, int] = (8, 512),
    seed: int = 0,
) -> Workload:
    """The generator of S-LoRA's experiments (section 7.1), an open loop.

    round(rate * duration_s) requests; the time between two is Gamma of shape 1/cv² and scale
    cv²/rate; adapter i is drawn with the power law P(index < i) = (i / n) ** alpha, so that 1 is
    uniform and less is more skewed; lengths are uniform in [low, high).
    """
    names = list(adapters) or list(BASE_ONLY)
    for field, value in (("alpha", alpha), ("cv", cv), ("rate", rate), ("duration", duration_s)):
        if not value > 0:
            raise WorkloadError(field, value, "must be above 0")
    for field, (low, high) in (("input tokens", input_tokens), ("output tokens", output_tokens)):
        if not 1 <= low < high:
            raise WorkloadError(field, (low, high), "must be LOW:HIGH with 1 <= LOW < HIGH")
    count = max(1, round(rate * duration_s))
    generator = np.random.default_rng(seed)
    at_s = np.cumsum(generator.gamma(1 / cv**2, cv**2 / rate, count))
    indices = (generator.power(alpha, count) * len(names)).astype(int)
    inputs = generator.integers(*input_tokens, size=count)
    outputs = generator.integers(*output_tokens, size=count)
    requests = tuple(
        Request(i, names[indices[i]], int(inputs[i]), int(outputs[i]), float(at_s[i]))
        for i in range(count)
    )
    return Workload(
        "slora",
        (Phase("slora", requests),),
        {
            "num_adapters": len(adapters),
            "alpha": alpha,
            "cv": cv,
            "rate": rate,
            "duration_s": duration_s,
            "input_tokens": list(input_tokens),
            "output_tokens": list(output_tokens),
            "seed": seed,
        },
    )


def truefoundry(
    adapters: Sequence[str],
    *,
    num_requests: int = 100,
    concurrency: int = 1,
    input_tokens: int = 70,
    output_tokens: int = 10,
) -> Workload:
    """Short answers, round-robin over the adapters; by default one request at a time."""
    return _closed_loop(
        "truefoundry", adapters, concurrency, num_requests, input_tokens, output_tokens
    )


def closed(
    adapters: Sequence[str],
    *,
    concurrency: int = 8,
    num_requests: int = 64,
    input_tokens: int = 128,
    output_tokens: int = 64,
) -> Workload:
    """`concurrency` requests at any time, round-robin over the adapters: with as many adapters as
    streams all that run together are different."""
    return _closed_loop("closed", adapters, concurrency, num_requests, input_tokens, output_tokens)


def oversubscribed(
    adapters: Sequence[str],
    *,
    num_fitting: int,
    concurrency: int = 8,
    num_requests: int = 64,
    input_tokens: int = 128,
    output_tokens: int = 64,
    rounds: int = 3,
) -> Workload:
    """The same closed loop twice, in turns: over the first `num_fitting` adapters, which the pool
    holds beside the KV in use, and over all. Round-robin, the worst order for a cache."""
    if not 1 <= num_fitting < len(adapters):
        raise WorkloadError(
            "fitting adapters", num_fitting, f"must be 1 to {len(adapters) - 1}, fewer than all"
        )
    if rounds < 1:
        raise WorkloadError("rounds", rounds, "must be at least 1")
    shape = (concurrency, num_requests, input_tokens, output_tokens)
    phases = []
    for _ in range(rounds):
        for name, names in (("fits", adapters[:num_fitting]), ("over", adapters)):
            phases.append(_closed_phase(name, names, *shape))
    return Workload(
        "oversubscribed",
        tuple(phases),
        {
            **_parameters(adapters, *shape),
            "num_fitting": num_fitting,
            "rounds": rounds,
        },
    )


def with_warm_up(workload: Workload, adapters: Sequence[str]) -> Workload:
    """The workload after a phase that uses each adapter once, which is not counted."""
    names = list(adapters) or list(BASE_ONLY)
    requests = tuple(Request(i, name, 8, 2) for i, name in enumerate(names))
    warm_up = Phase("warm-up", requests, concurrency=4, counted=False)
    return Workload(workload.name, (warm_up, *workload.phases), workload.parameters)


def _closed_loop(name: str, adapters: Sequence[str], *shape: int) -> Workload:
    return Workload(name, (_closed_phase(name, adapters, *shape),), _parameters(adapters, *shape))


def _closed_phase(name: str, adapters: Sequence[str], *shape: int) -> Phase:
    concurrency, num_requests, input_tokens, output_tokens = shape
    for field, value in zip(
        ("concurrency", "requests", "input tokens", "output tokens"), shape, strict=True
    ):
        if value < 1:
            raise WorkloadError(field, value, "must be at least 1")
    names = list(adapters) or list(BASE_ONLY)
    requests = tuple(
        Request(i, names[i % len(names)], input_tokens, output_tokens) for i in range(num_requests)
    )
    return Phase(name, requests, concurrency)


def _parameters(adapters: Sequence[str], *shape: int) -> dict[str, int]:
    names = ("concurrency", "num_requests", "input_tokens", "output_tokens")
    return {"num_adapters": len(adapters), **dict(zip(names, shape, strict=True))}
