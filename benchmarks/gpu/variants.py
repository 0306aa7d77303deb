"""Whether CUDA graphs and a second stream for LoRA help: the same steps with and without."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.gpu.adapters import Windows
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.decode import ALONE_BASE, ALONE_ONE, BASE, DIFFERENT, cases_of, measured
from benchmarks.gpu.model import RandomModel
from benchmarks.gpu.parts import Skipped
from benchmarks.rounds import Ratio, judged, print_ratios
from benchmarks.session import Session
from dataplane.channel import EngineOptions

_WITHIN_S = 15.0
_FIRST_SHARE = 0.4  # of what is free: the pool of the first engine
_SECOND_SHARE = 0.6
_CASES = (BASE, DIFFERENT, ALONE_BASE, ALONE_ONE)

VARIANTS = {"graphs": "cuda_graphs", "lora-stream": "lora_stream"}
"""Part -> the engine's option that it turns on and off."""


def variants(bench: Bench, part: str) -> dict[str, Any]:
    """Step times of an engine with the option and one without, one after the other.

    Raises: Skipped when the engine has no such option, or the device does not know it.
    """
    option = VARIANTS[part]
    if option not in EngineOptions.__struct_fields__:
        raise Skipped(f"the engine has no option {option}")
    scale, model = bench.scale, bench.model(bench.scale.graphs)
    ranks = (scale.rank, *scale.mixed_ranks, scale.even_rank)
    windows = Windows(model, ranks=ranks, count=2 * scale.streams, targets=scale.targets)
    cases = {name: each for name, each in cases_of(bench, windows).items() if name in _CASES}
    sessions: dict[str, Session] = {}
    started: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        for state, value in (("with", True), ("without", False)):
            sessions[state], started[state] = _session(stack, bench, model, windows, option, value)
        loops = {
            f"{name}, {state}": (session, adapters)
            for name, adapters in cases.items()
            for state, session in sessions.items()
        }
        seconds, idle = measured(bench, loops, within_s=bench.within(_WITHIN_S))
    ratios = judged(
        [
            Ratio(f"{name}: with {option} to without", f"{name}, with", f"{name}, without")
            for name in cases
        ],
        seconds,
    )
    for name, each in seconds.items():
        print(f"{name:<56}{statistics.median(each) * 1e3:>8.2f} ms")
    print_ratios(ratios)
    return {
        "model": scale.graphs,
        "option": option,
        "streams": scale.streams,
        "started": started,
        "step_s": seconds,
        "idle_share": idle,
        "ratios": ratios,
    }


def _session(
    stack: ExitStack, bench: Bench, model: RandomModel, windows: Windows, option: str, value: bool
) -> tuple[Session, dict[str, float]]:
    """An engine with the option set, and the seconds and bytes that starting it took. Two of them
    must fit beside the weights, which they share."""
    pool: dict[str, int] = {}
    before = 0
    if bench.device.type == "cuda":
        model.weights()
        before, _ = torch.cuda.mem_get_info(bench.device)
        pool = {"pool_bytes": int(before * (_FIRST_SHARE if value else _SECOND_SHARE))}
    started_s = time.perf_counter()
    session = stack.enter_context(
        bench.engine(
            Session, model, windows, max_running=bench.scale.streams, **pool, **{option: value}
        )
    )
    facts = {"seconds": time.perf_counter() - started_s}
    if bench.device.type == "cuda":
        left, _ = torch.cuda.mem_get_info(bench.device)
        facts["bytes_beside_the_pool"] = before - left - pool["pool_bytes"]
    return session, facts
