"""A model, its adapters, and engines over them that differ in nothing but their pool."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.load.records import Record
from benchmarks.load.workload import Request, prompt_of
from benchmarks.models import SHAPES, Shape, write_adapter, write_model
from benchmarks.pools.calibrate import Calibration, copy_s_per_byte
from benchmarks.pools.drive import (
    Clock,
    Objective,
    RealClock,
    Usage,
    check_empty,
    counters,
    open_loop,
)
from benchmarks.pools.policies import Policy
from benchmarks.pools.simulated import Costs, SimulatedClock, SimulatedDecoder, SimulatedLoader
from benchmarks.session import adapter_at
from dataplane.channel import Adapter
from dataplane.cost_model import CostModel
from dataplane.engine.engine import Engine
from dataplane.engine.pipeline import DEPTH
from dataplane.engine.setup import adapter_builder, pick_device, pick_dtype
from dataplane.lora.copier import PoolCopy
from dataplane.lora.layout import HostAdapter
from dataplane.lora.loader import AdapterLoader, ThreadedLoader
from dataplane.models.config_json import load_config
from dataplane.models.decoder import Decoder
from dataplane.models.weights import load_weights
from dataplane.pool.pool import PagePool
from kernels.lora.cpu import warm_up
from kernels.lora.plan import PageRun
from storage.sources import SourceOptions

PAGE_TOKENS = 16
BATCH_TOKENS = 512
MAX_WAITING = 1_000_000
_LOAD_TIMEOUT_S = 60.0
_HOST_BYTES = 8 << 30


@dataclass(frozen=True)
class RunResult:
    records: list[Record]
    counters: dict[str, Any]
    usage: list[Usage]  # of each phase, by time
    took_s: float  # on the wall


class Rig:
    """Raises: BenchError when an adapter cannot be loaded."""

    def __init__(
        self,
        folder: Path,
        shape_name: str,
        ranks: Sequence[int],
        *,
        targets: Sequence[str],
        num_pages: int,
        max_running: int,
        dtype: str = "auto",
        device: str = "auto",
        num_threads: int = 0,
    ) -> None:
        if num_threads:
            torch.set_num_threads(num_threads)
        self.shape: Shape = SHAPES[shape_name]
        self.num_pages = num_pages
        self.max_running = max_running
        self._folder = folder
        self.device = pick_device(device)
        write_model(folder / "model", self.shape)
        self._config = load_config(folder / "model")
        self.dtype = pick_dtype(dtype, self._config, self.device)
        if self.device.type == "cpu":
            warm_up(self.dtype)
        weights = load_weights(folder / "model", self._config, self.dtype, self.device)
        self.adapters: dict[str, Adapter] = {}
        for index, rank in enumerate(ranks):
            path = folder / "adapters" / f"a{index:03}"
            write_adapter(path, self.shape, rank=rank, seed=index, targets=targets)
            self.adapters[path.name] = adapter_at(path)
        sample = self._pool(Policy("sample"), num_pages, 0, 0)  # what is larger is refused
        self._build = adapter_builder("bench", self._config, weights, sample)
        self._decoder = Decoder(self._config, weights, self._config.max_position_embeddings)
        self.host, self._load_s = self._load_all()
        self.pages = {name: self._host(name).pages.shape[1] for name in self.adapters}

    def calibrate(self, rounds: int) -> tuple[Costs, dict[str, Any]]:
        """The costs, and the medians behind them."""
        pool = self._pool(
            Policy("calibration"), sum(self.pages.values()) + 32 * 128 // PAGE_TOKENS, 0, 0
        )
        free = Costs(CostModel(), 0.0, 0.0)
        loader = SimulatedLoader(SimulatedClock(), free, self.host)
        engine = self._engine(pool, loader, time.monotonic, max_running=64)
        calibration = Calibration(engine, list(self.adapters.values()), self.shape.vocab_size)
        steps = calibration.run(rounds)
        copy = copy_s_per_byte(pool, list(self.host.values()))
        check_empty(engine)
        table = [
            {"prefill_tokens": key[0], "decoding": key[1], "seconds": statistics.median(seconds)}
            for key, seconds in sorted(calibration.seen.items())
        ]
        facts = {"steps": table, "load_s": self._load_s, "copy_s_per_byte": copy}
        return Costs(steps, self._load_s, copy), facts

    def run(
        self,
        policy: Policy,
        requests: Sequence[Request],
        objective: Objective,
        *,
        longest: int,
        phase_s: float,
        num_phases: int,
        costs: Costs | None,
        seed: int,
    ) -> RunResult:
        """costs: for simulated time; None runs in real time. longest: tokens of a request.
        phase_s: length of each phase; the last one ends with the run.

        Raises: BenchError when the policy cannot hold the work, or a page is left over.
        """
        largest = max(self.pages.values())
        pool = self._pool(policy, self.num_pages, largest, -(-longest // PAGE_TOKENS))
        limit = policy.max_adapter_pages(self.num_pages, largest)
        usage: list[Usage] = []

        def observe(began_s: float, ended_s: float, num_streams: int) -> None:
            phase = min(int(began_s / phase_s), num_phases - 1)
            while len(usage) <= phase:
                usage.append(Usage())
            usage[phase].add(ended_s - began_s, pool.num_pages - pool.num_available, num_streams)

        started_s = time.perf_counter()
        with self._timed_engine(pool, costs) as (engine, clock):
            records = open_loop(
                engine,
                clock,
                requests,
                {name: each for name, each in self.adapters.items() if self.pages[name] <= limit},
                lambda request: prompt_of(0, request, seed=seed, vocab_size=self.shape.vocab_size),
                objective,
                observe,
            )
            counted = counters(engine)
        return RunResult(records, counted, usage, time.perf_counter() - started_s)

    @contextmanager
    def _timed_engine(self, pool: PagePool, costs: Costs | None) -> Iterator[tuple[Engine, Clock]]:
        if costs is None:
            loader = self._threaded_loader()
            loader.start()
            try:
                clock = RealClock()
                engine = self._engine(
                    pool,
                    loader,
                    clock.now,
                    max_running=self.max_running,
                    pipeline_depth=DEPTH,
                )
                yield engine, clock
            finally:
                loader.stop()
            return
        clock = SimulatedClock()
        loader = SimulatedLoader(clock, costs, self.host)
        decoder: Any = SimulatedDecoder(self._config, clock, costs)
        engine = self._engine(
            pool, loader, clock.now, max_running=self.max_running, decoder=decoder
        )
        _copy_at_once(engine)
        yield engine, clock

    def _engine(
        self,
        pool: PagePool,
        loader: AdapterLoader,
        clock: Callable[[], float],
        *,
        max_running: int,
        decoder: Decoder | None = None,
        pipeline_depth: int = 1,
    ) -> Engine:
        """pipeline_depth: 1 where steps are to be timed or time is simulated, one by one."""
        return Engine(
            decoder or self._decoder,
            pool,
            loader,
            eos_token_ids=frozenset(self._config.eos_token_ids),
            max_context=self._config.max_position_embeddings,
            max_running=max_running,
            max_batch_tokens=max(BATCH_TOKENS, max_running),
            max_waiting=MAX_WAITING,
            pipeline_depth=pipeline_depth,
            clock=clock,
        )

    def _pool(self, policy: Policy, num_pages: int, largest: int, longest: int) -> PagePool:
        return policy.pool(
            self._config,
            num_pages=num_pages,
            largest=largest,
            longest=longest,
            page_tokens=PAGE_TOKENS,
            dtype=self.dtype,
            device=self.device,
        )

    def _host(self, name: str) -> HostAdapter:
        return self.host[self.adapters[name].digest]

    def _threaded_loader(self) -> ThreadedLoader:
        return ThreadedLoader(
            self._build,
            sources=SourceOptions(roots=[self._folder]),
            host_bytes=_HOST_BYTES,
            disk_bytes=0,
            disk_dir="",
            on_result=lambda: None,
        )

    def _load_all(self) -> tuple[dict[str, HostAdapter], float]:
        """Every adapter in pool layout, and how long one takes that host memory holds."""
        loader = self._threaded_loader()
        loader.start()
        try:
            host = {each.digest: _loaded(loader, each)[0] for each in self.adapters.values()}
            again = [_loaded(loader, each)[1] for each in self.adapters.values()]
        finally:
            loader.stop()
        return host, statistics.median(again)


def _loaded(loader: ThreadedLoader, adapter: Adapter) -> tuple[HostAdapter, float]:
    """The adapter, and the seconds it took. Raises: BenchError."""
    started_s = time.perf_counter()
    loader.request(adapter)
    while not (ended := loader.results()):
        if time.perf_counter() - started_s > _LOAD_TIMEOUT_S:
            raise BenchError("LOAD_FAILED", f"{adapter.name} did not load in {_LOAD_TIMEOUT_S} s")
        time.sleep(0.0001)
    took_s = time.perf_counter() - started_s
    if ended[0].adapter is None:
        raise BenchError("LOAD_FAILED", f"{adapter.name}: {str(ended[0].error)[:300]}")
    return ended[0].adapter, took_s


def _copy_at_once(engine: Engine) -> None:
    """The simulated loader has charged the copy's time already."""
    copier = engine._resident.copier
    begin = copier.begin

    def begin_and_end(source: torch.Tensor, run: PageRun, _on_all_ranks: None) -> PoolCopy:
        copy = begin(source, run)
        copy.wait(source.shape[0] - 1)
        return copy

    copier.begin = begin_and_end
