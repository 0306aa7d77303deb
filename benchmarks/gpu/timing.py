"""Seconds of one call on the device, and what the device can do at best.

On a GPU calls are captured in a graph, over copies of their tensors that together do not fit in the
cache, so neither launches nor a warm cache are measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

_GPU_WORKING_SET = 256 << 20  # several times any cache
_MAX_COPIES = 64
_MIN_CALLS = 8

Make = Callable[[], Callable[[], object]]
"""Makes a call over tensors of its own."""
Measure = Callable[[Make, int], float]
"""Seconds of one call that reads or writes so many bytes."""


def measure_on(device: torch.device, rounds: int) -> Measure:
    return partial(gpu_seconds if device.type == "cuda" else cpu_seconds, rounds=rounds)


def rates(device: torch.device, dtype: torch.dtype, measure: Measure) -> tuple[float, float]:
    """Bytes per second of a copy, read and write both counted; operations per second."""
    large = device.type == "cuda"
    num_bytes, size = (1 << 30, 8192) if large else (1 << 24, 256)

    def copy() -> Callable[[], object]:
        source = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def product() -> Callable[[], object]:
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    return num_bytes / measure(copy, num_bytes), 2 * size**3 / measure(product, num_bytes)


def gpu_seconds(make: Make, num_bytes: int, *, rounds: int) -> float:
    """Of one call: the median over replays of a graph of many."""
    copies = max(1, min(_MAX_COPIES, -(-_GPU_WORKING_SET // num_bytes)))
    calls = [make() for _ in range(copies)]
    calls *= -(-_MIN_CALLS // copies)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # compiles
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    seconds: list[float] = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(seconds)


def cpu_seconds(make: Make, num_bytes: int, *, rounds: int) -> float:
    call = make()
    call()
    seconds: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
