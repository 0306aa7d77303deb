"""Gaps between the tokens of running streams beside loads, and without."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.interference_cases import CASES, Plan
from benchmarks.models import ATTENTION
from benchmarks.rounds import print_ratios
from benchmarks.step_loop import StepLoop

BOUND = 1.05


def interference(bench: Bench) -> dict[str, Any]:
    """As `benchmarks.interference`, in the product's engine with its own tiers on this device."""
    scale, settings = bench.scale, bench.scale.interference
    model = bench.model(settings.model)
    folder = bench.new_folder()
    folder.mkdir(parents=True)
    plan = Plan(
        model.shape,
        folder,
        streams=settings.streams,
        rounds=max(1, round(settings.rounds * scale.share)),
        megabytes=settings.megabytes,
        trickle_s=settings.trickle_s,
        churn_s=settings.churn_s,
        rank=scale.rank,
        adapters=settings.adapters,
        fits=settings.fits,
        width=model.dtype.itemsize,
        max_trickle=BOUND,
        max_churn=BOUND,
        targets=ATTENTION,
        stream_tokens=settings.stream_tokens,
    )
    make_loop = partial(
        bench.engine, StepLoop, model, None, max_running=settings.streams + 1, max_batch_tokens=512
    )
    results = {name: case(plan, make_loop) for name, case in CASES.items()}
    for result in results.values():
        result.pop("engine")
        print_ratios(result["ratios"])
    return {
        "model": settings.model,
        "streams": settings.streams,
        "rank": scale.rank,
        "num_adapters": settings.adapters,
        "fit_in_pool": settings.fits,
        **results,
    }
