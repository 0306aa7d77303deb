"""Where a decode step's device time goes: each kernel's microseconds and launches per step."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks.gpu.adapters import Windows
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.decode import ALONE_ONE, BASE, DIFFERENT, MIXED, cases_of
from benchmarks.gpu.parts import Skipped
from benchmarks.session import Session

_CASES = (BASE, DIFFERENT, MIXED, ALONE_ONE)
_FIRST, _LAST = 8, 40  # full steps: what starts and ends a request is left out
_NUM_SHOWN = 14


def profile(bench: Bench) -> dict[str, Any]:
    """Of steps of every stream, by case. Kernels' own times: gaps between them are in no row.

    Raises: Skipped but on a GPU.
    """
    if bench.device.type != "cuda":
        raise Skipped("only on a GPU")
    scale, model = bench.scale, bench.model(bench.scale.graphs)
    first = min(_FIRST, scale.new_tokens // 4)
    last = min(_LAST, scale.new_tokens - 2)
    ranks = (scale.rank, *scale.mixed_ranks, scale.even_rank)
    windows = Windows(model, ranks=ranks, count=2 * scale.streams, targets=scale.targets)
    cases = {name: each for name, each in cases_of(bench, windows).items() if name in _CASES}
    report: dict[str, Any] = {}
    with bench.engine(Session, model, windows, max_running=scale.streams) as session:
        for name, adapters in cases.items():
            for profiled in (False, True):  # the first compiles and loads
                steps = _ProfiledSteps(first, last if profiled else first)
                session.closed_loop(
                    adapters,
                    prompt_tokens=scale.prompt_tokens,
                    new_tokens=scale.new_tokens,
                    on_full_step=steps,
                )
            report[name] = steps.kernels()
            _show(name, report[name])
    return {"model": scale.graphs, "streams": scale.streams, "kernels": report}


class _ProfiledSteps:
    """Told how many full steps there were, it profiles those from `first` up to `last`."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._profiler = torch.profiler.profile(activities=[ProfilerActivity.CUDA])

    def __call__(self, num_steps: int) -> None:
        if self._first == self._last or num_steps not in (self._first, self._last):
            return
        torch.cuda.synchronize()
        if num_steps == self._first:
            self._profiler.start()
        else:
            self._profiler.stop()

    def kernels(self) -> list[dict[str, Any]]:
        """The longest first."""
        steps = self._last - self._first
        rows = [
            {
                "name": each.key[:160],
                "us": each.self_device_time_total / steps,
                "launches": each.count / steps,
            }
            for each in self._profiler.key_averages()
            if each.device_type == DeviceType.CUDA
        ]
        return sorted(rows, key=lambda row: -float(row["us"]))


def _show(name: str, rows: list[dict[str, Any]]) -> None:
    print(f"{name}: {sum(row['us'] for row in rows):.0f} us of kernels a step")
    for row in rows[:_NUM_SHOWN]:
        print(f"{row['us']:>10.1f} us {row['launches']:>7.1f} x  {row['name'][:90]}")
