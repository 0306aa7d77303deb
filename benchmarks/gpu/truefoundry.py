"""Single requests of 70 tokens in and 10 out, under K adapters in turn."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.adapters import Windows
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import rounds_in
from benchmarks.rounds import Case, Ratio, interleaved, judged, print_ratios
from benchmarks.session import Session
from dataplane.channel import Adapter

_WITHIN_S = 15.0
_PROMPT_TOKENS = 70
_NEW_TOKENS = 10


def truefoundry(bench: Bench) -> dict[str, Any]:
    """Mean latencies by round; each adapter was used once before."""
    scale, model = bench.scale, bench.model(bench.scale.truefoundry)
    counts = scale.truefoundry_adapters
    windows = Windows(model, ranks=(scale.rank,), count=max(counts), targets=scale.targets)
    everyone = [windows.adapter(scale.rank, index) for index in range(max(counts))]
    groups: dict[str, Sequence[Adapter | None]] = {"base only": [None]}
    groups.update({_name(count): everyone[:count] for count in counts})
    with bench.engine(Session, model, windows, max_running=1) as session:
        turns = {name: _mean_latency(bench, session, each) for name, each in groups.items()}
        for adapter in everyone:
            session.closed_loop([adapter], prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS)
        started_s = time.perf_counter()
        for each in turns.values():
            each()
        round_s = time.perf_counter() - started_s
        rounds = rounds_in(bench.within(_WITHIN_S), round_s, at_least=2, at_most=5)
        seconds = interleaved(turns, rounds)
    one, most = _name(min(counts)), _name(max(counts))
    ratios = judged(
        [
            Ratio(f"latency of {most} to {one}", most, one),
            Ratio(f"latency of {most} to base only", most, "base only"),
        ],
        seconds,
    )
    for name, means in seconds.items():
        print(f"{name:<56}{statistics.median(means) * 1e3:>8.2f} ms")
    print_ratios(ratios)
    return {
        "model": scale.truefoundry,
        "rank": scale.rank,
        "prompt_tokens": _PROMPT_TOKENS,
        "new_tokens": _NEW_TOKENS,
        "requests_a_round": scale.truefoundry_requests,
        "mean_latency_s": seconds,
        "ratios": ratios,
    }


def _name(count: int) -> str:
    return f"{count} adapter" + "s" * (count != 1)


def _mean_latency(bench: Bench, session: Session, adapters: Sequence[Adapter | None]) -> Case:
    turns = itertools.cycle(adapters)

    def one(adapter: Adapter | None) -> float:
        return session.closed_loop(
            [adapter], prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS
        ).elapsed_s

    def latency() -> float:
        return statistics.fmean(one(next(turns)) for _ in range(bench.scale.truefoundry_requests))

    return latency
