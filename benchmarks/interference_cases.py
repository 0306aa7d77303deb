"""Gaps of running streams beside adapters that come and go, and without them, in any engine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.load.provenance import processor_time
from benchmarks.models import ALL_LINEAR, Shape, write_adapter
from benchmarks.rounds import Case, Ratio, interleaved, judged
from benchmarks.session import adapter_at, device_name
from benchmarks.step_loop import StepLoop
from benchmarks.streams import Gaps, Streams
from benchmarks.trickle_server import trickling
from dataplane.channel import Adapter, Prefetch

TRICKLE, CHURN = "P99 gap with a trickling adapter", "P99 gap beside churn"
_MAX_RANK = 256
_MARGIN_TOKENS = 48

MakeLoop = Callable[..., AbstractContextManager[StepLoop]]
"""A loop over an engine with these options; it is stopped when the context ends."""


@dataclass(frozen=True)
class Plan:
    """megabytes: of the trickling file. rank, targets: of the churning adapters, of which the pool
    holds `fits`. stream_tokens: after which a stream is begun anew. width: bytes of a value."""

    shape: Shape
    folder: Path
    streams: int
    rounds: int
    megabytes: int
    trickle_s: float
    churn_s: float
    rank: int
    adapters: int
    fits: int
    width: int
    max_trickle: float
    max_churn: float
    targets: tuple[str, ...] = ALL_LINEAR
    stream_tokens: int = 1024


def trickle(plan: Plan, make_loop: MakeLoop) -> dict[str, Any]:
    """An adapter that comes slowly, beside the same request under one that is there."""
    rank = min(_MAX_RANK, max(1, (plan.megabytes << 20) // (2 * plan.shape.adapter_bytes(1))))
    # A new one each round: an adapter that was here before would come from memory. The last one
    # stays in the pool all the time.
    paths = [plan.folder / f"large{number}" for number in range(plan.rounds + 1)]
    for number, path in enumerate(paths):
        if not path.exists():
            write_adapter(path, plan.shape, rank=rank, seed=number, dtype=torch.float32)
    nbytes = plan.shape.adapter_bytes(rank)
    with (
        trickling(plan.folder, plan.trickle_s) as address,
        _loop(plan, make_loop, 3 * nbytes, host=4 * nbytes, address=address) as loop,
    ):
        result = _trickle_windows(plan, loop, paths, address)
    return {**result, "rank": rank, "file_bytes": 2 * nbytes, "pool_bytes_of_adapter": nbytes}


def _trickle_windows(plan: Plan, loop: StepLoop, paths: list[Path], address: str) -> dict[str, Any]:
    stays = adapter_at(paths.pop())
    loop.first_token_s(stays, 1)
    loop.engine.direct(Prefetch(stays, "pool", pin=True))
    streams = Streams(loop, plan.streams, plan.stream_tokens)
    with_it, without = Gaps(), Gaps()
    arrival_s: list[float] = []
    waiting = iter(paths)

    def quiet() -> float:
        """The same request, but under the adapter that is there."""
        until_s = time.perf_counter() + plan.trickle_s
        loop.submit(stays, prompt_tokens=1, new_tokens=1)
        return without.add(streams.window(lambda: time.perf_counter() < until_s))

    def loaded() -> float:
        path = next(waiting)
        adapter = msgspec.structs.replace(adapter_at(path), source=f"{address}/{path.name}")
        started_s = time.perf_counter()
        seen: list[int] = []

        def note(handle: int) -> None:
            seen.append(handle)
            arrival_s.append(time.perf_counter() - started_s)

        def goes_on() -> bool:
            return not seen or adapter.digest not in loop.parts.loader.residency().disk

        loop.submit(adapter, prompt_tokens=1, new_tokens=1)
        return with_it.add(streams.window(goes_on, note))

    return _judged(
        loop,
        {"trickle": loaded, "quiet": quiet},
        {"trickle": with_it, "quiet": without},
        Ratio(TRICKLE, "trickle", "quiet", at_most=plan.max_trickle),
        plan.rounds,
        {"first_token_after_s": arrival_s},
    )


def churn(plan: Plan, make_loop: MakeLoop) -> dict[str, Any]:
    """Adapters in turn through a pool that is too small for them, beside as many requests under one
    that stays."""
    adapters: list[Adapter] = []
    for number in range(plan.adapters):
        path = plan.folder / f"churn{number}"
        if not path.exists():
            write_adapter(path, plan.shape, rank=plan.rank, seed=number, targets=plan.targets)
        adapters.append(adapter_at(path))
    nbytes = plan.shape.adapter_bytes(plan.rank, plan.targets)
    fits = plan.fits * nbytes
    with _loop(plan, make_loop, fits, host=2 * fits) as loop:
        return {**_churn_windows(plan, loop, adapters), "bytes_of_adapter": nbytes}


def _churn_windows(plan: Plan, loop: StepLoop, adapters: list[Adapter]) -> dict[str, Any]:
    on_disk = loop.parts.loader.residency().disk
    loop.use_once([each for each in adapters if each.digest not in on_disk])
    loop.first_token_s(adapters[0], 1)
    streams = Streams(loop, plan.streams, plan.stream_tokens)
    served = {"churn": 0, "one adapter": 0}
    gaps_of = {name: Gaps() for name in served}
    order = np.random.default_rng(3)
    # The second case gets as many requests as the first one came to, evenly over its time.
    pace_s = {"churn": 0.0, "one adapter": 0.25}

    def turn(name: str, choose: Callable[[], Adapter]) -> Case:
        def window() -> float:
            started_s = time.perf_counter()
            before = served[name]
            due_s = started_s
            open_handles: list[int] = []

            def goes_on() -> bool:
                nonlocal due_s
                now_s = time.perf_counter()
                is_over = now_s >= started_s + plan.churn_s
                if not open_handles and not is_over and now_s >= due_s:
                    due_s += pace_s[name]
                    open_handles.append(loop.submit(choose(), prompt_tokens=1, new_tokens=1))
                return bool(open_handles) or not is_over

            def ended(handle: int) -> None:
                open_handles.remove(handle)
                served[name] += 1

            p99 = gaps_of[name].add(streams.window(goes_on, ended))
            if name == "churn":
                pace_s["one adapter"] = plan.churn_s / max(1, served[name] - before)
            return p99

        return window

    return _judged(
        loop,
        {
            "churn": turn("churn", lambda: adapters[int(order.integers(len(adapters)))]),
            "one adapter": turn("one adapter", lambda: adapters[0]),
        },
        gaps_of,
        Ratio(CHURN, "churn", "one adapter", at_most=plan.max_churn),
        plan.rounds,
        {"requests": served},
    )


CASES = {"trickle": trickle, "churn": churn}


@contextmanager
def _loop(
    plan: Plan, make_loop: MakeLoop, adapter_bytes: int, *, host: int, address: str = ""
) -> Generator[StepLoop]:
    """adapter_bytes, host: of adapters in the pool and in host memory, at two bytes a value.
    address: that adapters may come from. What came from there before is forgotten."""
    shape = plan.shape
    token_values = 2 * shape.num_kv_heads * shape.head_dim * shape.num_layers
    kv_values = (plan.streams + 1) * (plan.stream_tokens + _MARGIN_TOKENS) * token_values
    disk = plan.folder / "disk"
    if address:
        disk = plan.folder / "disk-of-trickle"
        shutil.rmtree(disk, ignore_errors=True)
    with make_loop(
        pool_bytes=plan.width * (kv_values + adapter_bytes // 2),
        host_cache_bytes=plan.width * host // 2,
        disk_cache_dir=str(disk),
        adapter_roots=(str(plan.folder),),
        allowed_sources=(f"{address}/",) if address else (),
        private_hosts=("127.0.0.1",) if address else (),
    ) as loop:
        yield loop


def _judged(
    loop: StepLoop,
    cases: dict[str, Case],
    gaps: dict[str, Gaps],
    ratio: Ratio,
    rounds: int,
    facts: dict[str, Any],
) -> dict[str, Any]:
    before = processor_time()
    interleaved(cases, rounds)
    stolen = processor_time() - before
    loop.engine.check_integrity()
    ready = loop.parts.ready
    # Of all windows together: in one there are so few steps that its P99 is its worst but one.
    p99 = {name: [each.percentile(99)] for name, each in gaps.items()}
    return {
        "gap_s": {name: each.figures() for name, each in gaps.items()},
        "ratios": judged([ratio], p99),
        "stolen_share": stolen.stolen_share,
        **facts,
        "engine": {
            "device_type": ready.device.partition(":")[0],
            "device": device_name(ready.device),
            "dtype": ready.dtype,
        },
    }
