"""Whole decode steps: base only, few adapters, all different, ranks mixed; against the bytes that
such a step must read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.gpu.adapters import Windows
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import rounds_in
from benchmarks.rounds import Case, Ratio, interleaved, judged, print_ratios
from benchmarks.session import Session
from benchmarks.step_loop import StepLoop
from dataplane.channel import Adapter

_WITHIN_S = 35.0
BASE = "base only"
ONE = "1 adapter"
DIFFERENT = "all different"
MIXED = "ranks mixed"
EVEN = "ranks even"
ALONE_BASE = "1 stream, base only"
ALONE_ONE = "1 stream, 1 adapter"


def decode(bench: Bench, name: str) -> dict[str, Any]:
    """Seconds of a full step of each case, by round, and the ratios of issue 4."""
    bandwidth = bench.copy_bytes_per_s  # before a pool takes the memory
    scale, model = bench.scale, bench.model(name)
    streams = scale.streams
    ranks = (scale.rank, *scale.mixed_ranks, scale.even_rank)
    windows = Windows(model, ranks=ranks, count=2 * streams, targets=scale.targets)
    cases = cases_of(bench, windows)
    loads = {case: _bytes(bench, windows, adapters) for case, adapters in cases.items()}
    with bench.engine(Session, model, windows, max_running=streams) as session:
        loops = {case: (session, adapters) for case, adapters in cases.items()}
        seconds, idle = measured(bench, loops, within_s=bench.within(_WITHIN_S))
        facts = engine_facts(session)
    rooflines = {case: sum(each.values()) / bandwidth for case, each in loads.items()}
    ratios = judged(
        [
            Ratio("tax of 1 adapter", ONE, BASE, at_most=1.05),
            Ratio("tax of 1 adapter, 1 stream", ALONE_ONE, ALONE_BASE, at_most=1.05),
            Ratio("ranks mixed to the same total rank spread evenly", MIXED, EVEN, at_most=1.1),
            Ratio("all different to base only", DIFFERENT, BASE),
        ],
        seconds,
    )
    report = {
        "model": name,
        "streams": streams,
        "prompt_tokens": scale.prompt_tokens,
        "new_tokens": scale.new_tokens,
        "rank": scale.rank,
        "mixed_ranks": list(scale.mixed_ranks),
        "even_rank": scale.even_rank,
        "engine": facts,
        "copy_bytes_per_s": bandwidth,
        "step_s": seconds,
        "idle_share": idle,
        "bytes": loads,
        "roofline_s": rooflines,
        "fraction_of_roofline": {
            case: rooflines[case] / statistics.median(each) for case, each in seconds.items()
        },
        "ratios": ratios,
    }
    _show(report)
    return report


def cases_of(bench: Bench, windows: Windows) -> dict[str, list[Adapter | None]]:
    """The adapters of all streams, by case."""
    scale = bench.scale
    streams, rank = scale.streams, scale.rank
    different = [windows.adapter(rank, index) for index in range(streams)]
    mixed = [
        windows.adapter(scale.mixed_ranks[index % len(scale.mixed_ranks)], index)
        for index in range(streams)
    ]
    even = [windows.adapter(scale.even_rank, streams + index) for index in range(streams)]
    return {
        BASE: [None] * streams,
        ONE: [different[0]] * streams,
        f"{scale.few} adapters": [different[index % scale.few] for index in range(streams)],
        DIFFERENT: [*different],
        MIXED: [*mixed],
        EVEN: [*even],
        ALONE_BASE: [None],
        ALONE_ONE: [different[0]],
    }


def measured(
    bench: Bench,
    loops: Mapping[str, tuple[Session, Sequence[Adapter | None]]],
    *,
    within_s: float,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of a full step, and the share of the time that the device waited for the host."""
    idle: dict[str, list[float]] = {case: [] for case in loops}

    def turn(case: str, session: Session, adapters: Sequence[Adapter | None]) -> Case:
        def step_s() -> float:
            times = session.closed_loop(
                adapters,
                prompt_tokens=bench.scale.prompt_tokens,
                new_tokens=bench.scale.new_tokens,
            )
            idle[case].append(times.idle_share)
            if times.full_step_s is None:
                raise BenchError("NO_FULL_STEP", f"{case}: no step had all of the streams")
            return times.full_step_s

        return step_s

    turns = {case: turn(case, *loop) for case, loop in loops.items()}
    for each in turns.values():  # compiles, loads
        each()
    started_s = time.perf_counter()
    for each in turns.values():
        each()
    round_s = time.perf_counter() - started_s
    for shares in idle.values():
        shares.clear()
    rounds = rounds_in(within_s, round_s, at_least=2, at_most=9)
    return interleaved(turns, rounds), idle


def engine_facts(loop: Session | StepLoop) -> dict[str, float]:
    """Of its pool and its graphs, so far."""
    stats = loop.parts.engine.stats()
    names = ("num_pages", "num_graphs", "graph_capture_s", "graph_bytes", "num_graph_steps")
    return {name: getattr(stats, name) for name in names}


def _bytes(bench: Bench, windows: Windows, adapters: Sequence[Adapter | None]) -> dict[str, float]:
    """That a step must read at least: base, distinct adapters, and the keys and values, of a
    sequence that is half through with its new tokens."""
    scale, model = bench.scale, windows.model
    tokens = len(adapters) * (scale.prompt_tokens + scale.new_tokens / 2)
    distinct = {each.digest: each for each in adapters if each is not None}
    return {
        "base": model.base_bytes,
        "adapters": sum(windows.num_bytes(each) for each in distinct.values()),
        "kv": tokens * model.kv_token_bytes,
    }


def _show(report: dict[str, Any]) -> None:
    print(f"{report['model']}: decode of {report['streams']} streams")
    for case, seconds in report["step_s"].items():
        print(
            f"{case:<56}{statistics.median(seconds) * 1e3:>8.2f} ms"
            f"{100 * report['fraction_of_roofline'][case]:>7.1f}% of roofline"
        )
    print_ratios(report["ratios"])
