"""The first token under an adapter in the pool, in host memory, on disk."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import rounds_in
from benchmarks.gpu.timing import measure_on
from benchmarks.models import write_adapter
from benchmarks.rounds import Ratio, interleaved, judged, print_ratios
from benchmarks.session import adapter_at
from benchmarks.step_loop import StepLoop
from dataplane.channel import Adapter

_WITHIN_S = 15.0
_COPY_ROUNDS = 5
_PARTS = ("queue", "read, and verify what outlasts the rest", "parse", "convert")


def cold_start(bench: Bench) -> dict[str, Any]:
    """Seconds to the first token, what loading from disk consisted of, and how long a copy of the
    same bytes from pinned memory takes by itself."""
    scale, model = bench.scale, bench.model(bench.scale.cold)
    folder = bench.new_folder()
    path = folder / "adapter"
    write_adapter(
        path, model.shape, rank=scale.rank, seed=3, targets=scale.targets, dtype=model.dtype
    )
    adapter, num_bytes = adapter_at(path), int(model.adapter_bytes(scale.rank, scale.targets))
    with bench.engine(
        StepLoop,
        model,
        None,
        max_running=1,
        host_cache_bytes=(64 << 20) + 2 * num_bytes,
        disk_cache_dir=str(folder / "disk"),
        adapter_roots=(str(folder),),
    ) as loop:
        cases = _Cases(loop, adapter, folder / "disk", scale.cold_prompt_tokens)
        turns = {"warm": cases.warm, "host": cases.host, "disk": cases.disk}
        cases.prepare()
        started_s = time.perf_counter()
        for each in turns.values():
            each()
        round_s = time.perf_counter() - started_s
        rounds = rounds_in(bench.within(_WITHIN_S), round_s, at_least=2, at_most=15)
        cases.parts.clear()
        cases.raw_read_s.clear()
        seconds = interleaved(turns, rounds)
        loop.forget_in_pool()
        loop.check_empty()
    seconds["disk less the raw read"] = [
        max(0.0, whole - raw) for whole, raw in zip(seconds["disk"], cases.raw_read_s, strict=True)
    ]
    ratios = judged(
        [
            Ratio("from host memory to warm", "host", "warm"),
            Ratio("from disk, less the raw read, to warm", "disk less the raw read", "warm"),
        ],
        seconds,
    )
    report = {
        "model": scale.cold,
        "rank": scale.rank,
        "prompt_tokens": scale.cold_prompt_tokens,
        "adapter_bytes": num_bytes,
        "first_token_s": seconds,
        "raw_read_s": cases.raw_read_s,
        "disk_parts_s": {
            part: [each[at] for each in cases.parts] for at, part in enumerate(_PARTS)
        },
        "copy_alone_s": _copy_alone_s(bench, num_bytes),
        "ratios": ratios,
    }
    _show(report)
    return report


class _Cases:
    def __init__(self, loop: StepLoop, adapter: Adapter, disk: Path, prompt_tokens: int) -> None:
        self._loop = loop
        self._adapter = adapter
        self._disk = disk
        self._prompt_tokens = prompt_tokens
        self.parts: list[tuple[float, ...]] = []
        self.raw_read_s: list[float] = []

    def prepare(self) -> None:
        """Kernels compiled, the adapter on disk and in all tiers above."""
        for _ in range(2):
            self._first_token_s()
        self._loop.wait_on_disk(self._adapter)

    def warm(self) -> float:
        return self._first_token_s()

    def host(self) -> float:
        self._loop.forget_in_pool()
        return self._first_token_s()

    def disk(self) -> float:
        self._loop.forget_in_pool()
        self._loop.forget_in_host(self._adapter)
        files = [each for each in (self._disk / self._adapter.digest).iterdir() if each.is_file()]
        self.raw_read_s.append(_read_s(files))
        _forget_pages(files)
        seconds = self._first_token_s()
        timings = self._loop.parts.loader.recent_timings()[-1]
        if timings.tier != "disk":
            raise BenchError("NOT_FROM_DISK", f"the adapter came from its {timings.tier}")
        self.parts.append((timings.queue_s, timings.read_s, timings.parse_s, timings.build_s))
        return seconds

    def _first_token_s(self) -> float:
        return self._loop.first_token_s(self._adapter, self._prompt_tokens)


def _read_s(files: list[Path]) -> float:
    _forget_pages(files)
    started_s = time.perf_counter()
    for path in files:
        path.read_bytes()
    return time.perf_counter() - started_s


def _forget_pages(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _copy_alone_s(bench: Bench, num_bytes: int) -> float:
    pinned = bench.device.type == "cuda"
    source = torch.ones(num_bytes, dtype=torch.uint8, pin_memory=pinned)
    target = torch.empty(num_bytes, dtype=torch.uint8, device=bench.device)
    measure = measure_on(bench.device, _COPY_ROUNDS)
    return measure(lambda: lambda: target.copy_(source, non_blocking=True), num_bytes)


def _show(report: dict[str, Any]) -> None:
    for case, seconds in report["first_token_s"].items():
        print(f"{case:<56}{statistics.median(seconds) * 1e3:>8.2f} ms")
    for part, seconds in report["disk_parts_s"].items():
        print(f"{'  from disk: ' + part:<56}{statistics.median(seconds) * 1e3:>8.2f} ms")
    print(f"{'a copy of its bytes by itself':<56}{report['copy_alone_s'] * 1e3:>8.2f} ms")
    print_ratios(report["ratios"])
