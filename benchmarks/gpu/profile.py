"""Where a decode step's device time goes: each kernel's microseconds and launches per step, what of
the adapters' kernels is not hidden behind others, and a layer's kernels one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks.gpu.adapters import Windows
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.decode import ALONE_ONE, BASE, DIFFERENT, MIXED, ONE, cases_of
from benchmarks.gpu.parts import Skipped
from benchmarks.gpu.timeline import Kernel, Shares, one_layer, shares
from benchmarks.session import Session

_CASES = (BASE, ONE, DIFFERENT, MIXED, ALONE_ONE)
_ANCHOR = "decode_kernel"  # attention's: once a layer
_OF_ADAPTERS = ("shrink_kernel", "expand_kernel", "FillFunctor")  # and zeros for what they add to
_FIRST, _LAST = 8, 40  # full steps: what starts and ends a request is left out
_NUM_SHOWN = 14


def profile(bench: Bench) -> dict[str, Any]:
    """Of steps of every stream, by case. Kernels' own times: what is between them is in no row, but
    in the shares of a step's time.

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
    kernels: dict[str, Any] = {}
    spent: dict[str, Any] = {}
    layers: dict[str, Any] = {}
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
            kernels[name] = steps.kernels()
            launches = steps.launches()
            each = shares(launches, _is_of_adapters)
            spent[name] = {kind: us / steps.count for kind, us in each._asdict().items()}
            layers[name] = one_layer(launches, _ANCHOR)
            _show(name, kernels[name], Shares(**spent[name]))
    return {
        "model": scale.graphs,
        "streams": scale.streams,
        "kernels": kernels,
        "step_us": spent,
        "layer": layers,
    }


def _is_of_adapters(name: str) -> bool:
    return any(part in name for part in _OF_ADAPTERS)


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

    @property
    def count(self) -> int:
        return self._last - self._first

    def launches(self) -> list[Kernel]:
        return [
            Kernel(each.name, each.device_resource_id, each.time_range.start, each.time_range.end)
            for each in self._profiler.events() or ()
            if each.device_type == DeviceType.CUDA
        ]

    def kernels(self) -> list[dict[str, Any]]:
        """The longest first."""
        rows = [
            {
                "name": each.key[:160],
                "us": each.self_device_time_total / self.count,
                "launches": each.count / self.count,
            }
            for each in self._profiler.key_averages()
            if each.device_type == DeviceType.CUDA
        ]
        return sorted(rows, key=lambda row: -float(row["us"]))


def _show(name: str, rows: list[dict[str, Any]], spent: Shares) -> None:
    print(
        f"{name}: {sum(row['us'] for row in rows):.0f} us of kernels a step, adapters' alone"
        f" {spent.marked:.0f} us, none {spent.idle:.0f} us"
    )
    for row in rows[:_NUM_SHOWN]:
        print(f"{row['us']:>10.1f} us {row['launches']:>7.1f} x  {row['name'][:90]}")
