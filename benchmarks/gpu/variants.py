"""Whether CUDA graphs and a second stream for LoRA help: the same steps with and without."""

from __future__ import annotations

import inspect
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.adapters import Windows
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.decode import (
    ALONE_BASE,
    ALONE_ONE,
    BASE,
    DIFFERENT,
    ONE,
    cases_of,
    engine_facts,
    measured,
)
from benchmarks.gpu.model import RandomModel
from benchmarks.gpu.parts import Skipped
from benchmarks.rounds import Ratio, judged, print_ratios
from benchmarks.session import Session
from dataplane.engine import setup
from dataplane.engine_options import EngineOptions

_WITHIN_S = 20.0
_POOL_SHARES = (0.4, 0.6)  # of what is free when the first engine is built, and the second
_CASES = (BASE, ONE, DIFFERENT, ALONE_BASE, ALONE_ONE)


@dataclass(frozen=True)
class Variant:
    """What is on in one engine and off in the other: fields of EngineOptions, or keywords of
    build_engine."""

    options: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    needs_gpu: bool = True


VARIANTS = {
    "graphs": Variant(options=("cuda_graphs",)),
    "lora-stream": Variant(keywords=("lora_stream",)),
}


def variants(bench: Bench, part: str, variant: Variant) -> dict[str, Any]:
    """Step times of an engine with it and of one without, in turns, and what each took to start.

    Raises: Skipped when the engine does not know it, or only on a GPU.
    """
    known = (EngineOptions.__struct_fields__, inspect.signature(setup.build_engine).parameters)
    for names, there in zip((variant.options, variant.keywords), known, strict=True):
        if unknown := [name for name in names if name not in there]:
            raise Skipped(f"the engine has no {', '.join(unknown)}")
    if variant.needs_gpu and bench.device.type == "cpu":
        raise Skipped("only on a GPU")
    scale, model = bench.scale, bench.model(bench.scale.graphs)
    ranks = (scale.rank, *scale.mixed_ranks, scale.even_rank)
    windows = Windows(model, ranks=ranks, count=2 * scale.streams, targets=scale.targets)
    cases = {name: each for name, each in cases_of(bench, windows).items() if name in _CASES}
    started: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        sessions = {
            state: _session(stack, bench, windows, variant, state == "with", share, started)
            for state, share in zip(("with", "without"), _POOL_SHARES, strict=True)
        }
        loops = {
            f"{name}, {state}": (session, adapters)
            for name, adapters in cases.items()
            for state, session in sessions.items()
        }
        seconds, idle = measured(bench, loops, within_s=bench.within(_WITHIN_S))
        facts = {state: engine_facts(session) for state, session in sessions.items()}
    ratios = judged(
        [Ratio(f"{name}: with to without", f"{name}, with", f"{name}, without") for name in cases],
        seconds,
    )
    print(f"{part}: {scale.graphs}, {scale.streams} streams")
    for name, each in seconds.items():
        print(f"{name:<56}{statistics.median(each) * 1e3:>8.2f} ms")
    for state, each in facts.items():
        print(
            f"started {state:<48}{started[state]['seconds']:>8.1f} s, {each['num_graphs']} graphs"
            f" in {each['graph_capture_s']:.1f} s, {each['graph_bytes'] / 2**20:.0f} MiB"
        )
    print_ratios(ratios)
    return {
        "model": scale.graphs,
        "what": [*variant.options, *variant.keywords],
        "streams": scale.streams,
        "started": started,
        "engines": facts,
        "step_s": seconds,
        "idle_share": idle,
        "ratios": ratios,
    }


def _session(
    stack: ExitStack,
    bench: Bench,
    windows: Windows,
    variant: Variant,
    value: bool,
    pool_share: float,
    started: dict[str, dict[str, float]],
) -> Session:
    """An engine beside others over the same weights, and in `started` what starting it took."""
    options: dict[str, Any] = dict.fromkeys(variant.options, value)
    model: RandomModel = windows.model
    if bench.device.type == "cuda":
        model.weights()
        free, _ = torch.cuda.mem_get_info(bench.device)
        options["pool_bytes"] = int(free * pool_share)
    started_s = time.perf_counter()
    session = stack.enter_context(
        bench.engine(
            Session,
            model,
            windows,
            max_running=bench.scale.streams,
            keywords=dict.fromkeys(variant.keywords, value),
            **options,
        )
    )
    state = "with" if value else "without"
    started[state] = {"seconds": time.perf_counter() - started_s}
    return session
