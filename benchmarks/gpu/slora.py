"""S-LoRA's settings: throughput with ever more adapters, all of which are really used.

Its tables give requests per second at a rate above what can be served. Here the same is a queue
that never runs dry: twice as many requests are in the engine as can run. Adapters are drawn
uniformly (alpha = 1), every block of n requests being a shuffle of all n, so that all are touched;
lengths are uniform as in its generator. All numbers of adapters serve the very same requests.
To fit the time, lengths are divided (`divisor`); a smaller number of tokens per request makes
adapters change more often, which is harder, not easier.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks.errors import BenchError
from benchmarks.gpu.adapters import Windows
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.decode import engine_facts
from benchmarks.gpu.model import RandomModel
from benchmarks.gpu.scale import Slora
from benchmarks.step_loop import StepLoop
from dataplane.channel import Adapter, Output

WITHIN_S = 60.0  # all runs of one setting
_LIMIT_S = 120.0  # one run
_PROBE_TOKENS = 16
_ALLOWANCE = 0.02


class Request(NamedTuple):
    prompt_tokens: int
    new_tokens: int


@dataclass
class Run:
    """Sums over the steps that gave tokens. bytes: base, distinct adapters, keys and values."""

    elapsed_s: float = 0.0
    num_tokens: int = 0
    num_steps: int = 0
    adapter_bytes: float = 0.0
    kv_bytes: float = 0.0
    num_distinct: int = 0


def slora(bench: Bench, part: str) -> dict[str, Any]:
    """Requests per second by number of adapters; the fewest are run again at the end."""
    plan = bench.scale.slora
    ranks = plan.settings[part]
    most = max(plan.num_adapters)
    model = bench.model(plan.model)
    windows = Windows(model, ranks=ranks, count=most, targets=plan.targets)
    order = [*plan.num_adapters, min(plan.num_adapters)]
    runs: dict[str, list[dict[str, Any]]] = {str(n): [] for n in plan.num_adapters}
    with bench.engine(StepLoop, model, windows, max_running=plan.max_running) as loop:
        step_s = _probe(loop, plan, windows, ranks)
        within_s = bench.within(WITHIN_S)
        divisor = fitting_divisor(plan, most, step_s, within_s / len(order))
        requests = requests_of(plan, most, divisor)
        for n in order:
            adapters = [windows.adapter(ranks[i % len(ranks)], i) for i in range(n)]
            run = saturated(loop, list(zip(requests, in_turn(adapters, most), strict=True)),
                            windows, in_flight=2 * plan.max_running)  # fmt: skip
            loop.check_empty()
            runs[str(n)].append(_figures(run, len(requests), n, model))
        facts = engine_facts(loop)
    report = {
        "model": plan.model,
        "ranks": list(ranks),
        "targets": list(plan.targets),
        "alpha": 1.0,
        "num_requests": len(requests),
        "lengths": list(lengths_of(plan, divisor)),
        "divisor": divisor,
        "max_running": plan.max_running,
        "engine": facts,
        "runs": runs,
        **loss(runs, min(plan.num_adapters), most),
    }
    _show(part, report)
    return report


def lengths_of(plan: Slora, divisor: int) -> tuple[int, int]:
    low, high = plan.lengths
    low = max(2, low // divisor)
    return low, max(low + 1, high // divisor)


def fitting_divisor(plan: Slora, num_requests: int, step_s: float, within_s: float) -> int:
    """The least by which lengths must be divided for a run to fit; else the largest there is."""
    for divisor in plan.divisors:
        low, high = lengths_of(plan, divisor)
        steps = num_requests * ((low + high - 1) / 2) / plan.max_running
        if steps * step_s <= within_s:
            return divisor
    return plan.divisors[-1]


def requests_of(plan: Slora, num_requests: int, divisor: int) -> list[Request]:
    generator = np.random.default_rng(5)
    sizes = generator.integers(*lengths_of(plan, divisor), size=(num_requests, 2))
    return [Request(int(inputs), int(outputs)) for inputs, outputs in sizes]


def in_turn(adapters: Sequence[Adapter], num_requests: int) -> list[Adapter]:
    """Shuffles of all of them, one after the other."""

    def shuffles() -> Iterator[Adapter]:
        generator = np.random.default_rng(6)
        while True:
            yield from (adapters[int(i)] for i in generator.permutation(len(adapters)))

    drawn = shuffles()
    return [next(drawn) for _ in range(num_requests)]


def saturated(
    loop: StepLoop, work: Sequence[tuple[Request, Adapter]], windows: Windows, *, in_flight: int
) -> Run:
    """Serves all of `work`, with so many requests in the engine as long as there are some.

    Raises: BenchError when that takes far longer than it may.
    """
    run = Run()
    todo = iter(work)
    open_requests: dict[int, tuple[Adapter, int]] = {}  # handle -> adapter, tokens so far

    def submit_next() -> None:
        following = next(todo, None)
        if following is not None:
            request, adapter = following
            handle = loop.submit(
                adapter, prompt_tokens=request.prompt_tokens, new_tokens=request.new_tokens
            )
            open_requests[handle] = (adapter, request.prompt_tokens)

    started_s = time.perf_counter()
    for _ in range(in_flight):
        submit_next()
    while open_requests:
        outputs = loop.step()
        if time.perf_counter() - started_s > _LIMIT_S:
            raise BenchError("TOO_SLOW", f"{len(work)} requests were not done in {_LIMIT_S:g} s")
        if outputs:
            _count(run, outputs, open_requests, windows)
        for output in outputs:
            if output.finish:
                del open_requests[output.handle]
                submit_next()
    run.elapsed_s = time.perf_counter() - started_s
    return run


def loss(runs: dict[str, list[dict[str, Any]]], fewest: int, most: int) -> dict[str, Any]:
    """How much longer the most adapters take than the fewest, and how much longer they may: by the
    bytes of the further adapters in a step, and the allowance."""
    few = {key: _median(runs[str(fewest)], key) for key in ("requests_per_s", "step_bytes")}
    many = {key: _median(runs[str(most)], key) for key in ("requests_per_s", "step_bytes")}
    extra = _median(runs[str(most)], "step_adapter_bytes")
    extra -= _median(runs[str(fewest)], "step_adapter_bytes")
    share = max(0.0, extra) / few["step_bytes"]
    return {
        "slower": few["requests_per_s"] / many["requests_per_s"],
        "extra_bytes_share": share,
        "may_be_slower": 1 + share + _ALLOWANCE,
    }


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _count(
    run: Run,
    outputs: Sequence[Output],
    open_requests: dict[int, tuple[Adapter, int]],
    windows: Windows,
) -> None:
    distinct: dict[str, Adapter] = {}
    tokens = 0
    for output in outputs:
        adapter, before = open_requests[output.handle]
        distinct[adapter.digest] = adapter
        tokens += before
        open_requests[output.handle] = (adapter, before + len(output.token_ids))
        run.num_tokens += len(output.token_ids)
    run.num_steps += 1
    run.num_distinct += len(distinct)
    run.adapter_bytes += sum(windows.num_bytes(each) for each in distinct.values())
    run.kv_bytes += tokens * windows.model.kv_token_bytes


def _figures(run: Run, num_requests: int, num_adapters: int, model: RandomModel) -> dict[str, Any]:
    adapters, kv = run.adapter_bytes / run.num_steps, run.kv_bytes / run.num_steps
    return {
        "elapsed_s": run.elapsed_s,
        "requests_per_s": num_requests / run.elapsed_s,
        "output_tokens_per_s": run.num_tokens / run.elapsed_s,
        "num_touched": min(num_adapters, num_requests),
        "num_steps": run.num_steps,
        "step_distinct_adapters": run.num_distinct / run.num_steps,
        "step_adapter_bytes": adapters,
        "step_kv_bytes": kv,
        "step_bytes": model.base_bytes + adapters + kv,
    }


def _probe(loop: StepLoop, plan: Slora, windows: Windows, ranks: Sequence[int]) -> float:
    """Seconds of a step with as many adapters as can run together; compiles and warms up."""
    count = min(plan.max_running, max(plan.num_adapters))
    adapters = [windows.adapter(ranks[i % len(ranks)], i) for i in range(count)]
    work = [(Request(plan.lengths[0], _PROBE_TOKENS), each) for each in adapters]
    saturated(loop, work, windows, in_flight=count)
    run = saturated(loop, work, windows, in_flight=count)
    return run.elapsed_s / run.num_steps


def _show(part: str, report: dict[str, Any]) -> None:
    low, high = report["lengths"]
    print(f"{part}: {report['num_requests']} requests of {low} to {high - 1} tokens in and out")
    for n, runs in report["runs"].items():
        print(
            f"{n + ' adapters':<56}{_median(runs, 'requests_per_s'):>8.2f} requests/s"
            f"{_median(runs, 'step_distinct_adapters'):>7.1f} in a step"
        )
    print(
        f"{'the most to the fewest: times slower':<56}{report['slower']:>8.3f}"
        f"  (<= {report['may_be_slower']:.3f})"
    )
