"""The cases of the engine benchmark. Each builds its engine, runs in rounds, and is judged."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.models import SHAPES, Shape, write_adapter, write_model
from benchmarks.rounds import Case, Ratio, interleaved, judged
from benchmarks.session import Session, Times, adapter_at
from dataplane.channel import Adapter, Ready
from dataplane.engine.pipeline import DEPTH
from dataplane.engine_options import EngineOptions

MIXED_RANKS = (8, 16, 32, 64)
FEW_ADAPTERS = 4
_MIN_POOL_BYTES = 256 << 20
_HOST_CACHE_BYTES = 4 << 30
_DISK_CACHE_BYTES = 8 << 30
_HOST_SLACK = 1.25  # pages are whole, and a file has a header
_MANY_POOL_BYTES = 512 << 20
_REQUESTS_A_ROUND = 16


@dataclass(frozen=True)
class Setup:
    """What all cases share. `folder` is theirs to write to."""

    folder: Path
    shape_name: str
    concurrency: int
    rank: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    num_idle: int
    device: str
    dtype: str
    num_threads: int
    tensor_parallel: int = 1

    @staticmethod
    def of(arguments: argparse.Namespace, folder: Path) -> Setup:
        return Setup(
            folder=folder,
            shape_name=arguments.shape,
            concurrency=arguments.concurrency,
            rank=arguments.rank,
            prompt_tokens=arguments.prompt_tokens,
            new_tokens=arguments.new_tokens,
            rounds=arguments.rounds,
            num_idle=arguments.idle,
            device=arguments.device,
            dtype=arguments.dtype,
            num_threads=arguments.threads,
            # Only benchmarks.engine has the option.
            tensor_parallel=getattr(arguments, "tensor_parallel", 1),
        )

    @property
    def shape(self) -> Shape:
        return SHAPES[self.shape_name]

    @property
    def is_promised(self) -> bool:
        """Whether the bounds of docs/benchmarks.md are about a closed loop of this size."""
        size = self.shape_name, self.concurrency, self.rank, self.tensor_parallel
        return size == ("small", 32, 16, 1)

    def parameters(self) -> dict[str, Any]:
        parameters = {key: value for key, value in asdict(self).items() if key != "folder"}
        return {"shape": parameters.pop("shape_name"), **parameters}

    def model(self) -> Path:
        path = self.folder / "model"
        if not path.exists():
            write_model(path, self.shape)
        return path

    def adapters(self, name: str, ranks: Sequence[int]) -> list[Adapter]:
        """One new adapter for each of `ranks`."""
        made: list[Adapter] = []
        for index, rank in enumerate(ranks):
            path = self.folder / f"{name}{index}"
            write_adapter(path, self.shape, rank=rank, seed=index)
            made.append(adapter_at(path))
        return made

    def session(
        self,
        stack: ExitStack,
        *,
        adapter_bytes: int,
        host_bytes: int = _HOST_CACHE_BYTES,
        pipeline_depth: int = DEPTH,
        speculative_tokens: int = 0,
        model: Path | None = None,
    ) -> Session:
        """An engine whose pool holds `adapter_bytes` of adapters beside the KV of all streams.
        model: of the shape; None: with random weights."""
        shape = self.shape
        token_bytes = 2 * 2 * shape.num_kv_heads * shape.head_dim * shape.num_layers
        tokens = self.concurrency * (self.prompt_tokens + self.new_tokens + 32)
        width = 2 if self.dtype == "float32" else 1
        wanted = int(1.5 * width * (adapter_bytes + tokens * token_bytes))
        session = Session(
            EngineOptions(
                model_dir=str(model or self.model()),
                model_name="bench",
                device=self.device,
                dtype=self.dtype,
                pool_bytes=max(_MIN_POOL_BYTES, wanted),
                max_running=self.concurrency,
                max_batch_tokens=max(512, self.concurrency),
                num_threads=self.num_threads,
                tensor_parallel=self.tensor_parallel,
                speculative_tokens=speculative_tokens,
                host_cache_bytes=max(host_bytes, _HOST_CACHE_BYTES),
                disk_cache_bytes=max(host_bytes, _DISK_CACHE_BYTES),
                disk_cache_dir=str(self.folder / "disk"),
                adapter_roots=(str(self.folder),),
            ),
            vocab_size=shape.vocab_size,
            pipeline_depth=pipeline_depth,
        )
        stack.callback(session.stop)
        return session

    def turn(
        self,
        session: Session,
        adapters: Sequence[Adapter | None],
        seen: list[Times],
        sampling: Mapping[str, Any] | None = None,
    ) -> Case:
        """A closed loop over all streams; its rate in output tokens a second."""

        def rate() -> float:
            times = session.closed_loop(
                adapters,
                prompt_tokens=self.prompt_tokens,
                new_tokens=self.new_tokens,
                sampling=sampling,
            )
            seen.append(times)
            return times.tokens_per_s

        return rate


@dataclass(frozen=True)
class Result:
    """rates: case -> output tokens/s of each round. times: case -> what its rounds took."""

    ready: Ready
    rates: dict[str, list[float]]
    times: dict[str, list[Times]]
    ratios: list[dict[str, Any]]
    facts: dict[str, Any]

    def report(self) -> dict[str, Any]:
        return {
            "output_tokens_per_s": self.rates,
            "full_step_s": {
                name: [each.full_step_s for each in times] for name, times in self.times.items()
            },
            "device_idle_share": {
                name: [each.idle_share for each in times] for name, times in self.times.items()
            },
            "ratios": self.ratios,
            **self.facts,
        }


def closed(setup: Setup) -> Result:
    """All streams different, few adapters for all of them, and base only."""
    streams, shape = setup.concurrency, setup.shape
    adapters = setup.adapters("closed", [setup.rank] * streams)
    few = [adapters[index % min(FEW_ADAPTERS, streams)] for index in range(streams)]
    different = f"{streams} adapters"
    adapter_bytes = streams * shape.adapter_bytes(setup.rank)
    base_bytes = shape.step_bytes(streams)
    roofline = 1 / (1 + adapter_bytes / base_bytes)
    with ExitStack() as stack:
        session = setup.session(stack, adapter_bytes=adapter_bytes)
        result = measured(
            setup,
            session.parts.ready,
            {
                "base only": (session, [None] * streams),
                different: (session, adapters),
                f"{FEW_ADAPTERS} adapters": (session, few),
            },
            [
                Ratio(
                    f"{different} to the byte roofline {roofline:.2f}",
                    different,
                    "base only",
                    scale=1 / roofline,
                    at_least=0.8 if setup.is_promised else None,
                ),
                Ratio(f"{different} to base only", different, "base only"),
                Ratio(
                    f"{FEW_ADAPTERS} adapters to base only",
                    f"{FEW_ADAPTERS} adapters",
                    "base only",
                    at_least=0.85 if setup.is_promised else None,
                ),
            ],
            {
                "base_bytes": base_bytes,
                "distinct_adapter_bytes": adapter_bytes,
                "byte_roofline_share_of_base_only": roofline,
            },
        )
    shares = {name: [each.idle_share for each in times] for name, times in result.times.items()}
    whole = {name: [1.0] * len(values) for name, values in shares.items()}
    limit = 0.1 if setup.is_promised else None
    lines = [
        judged(
            [Ratio(f"device idle between steps, share of step: {name}", "it", "1", at_most=limit)],
            {"it": shares[name], "1": whole[name]},
        )[0]
        for name in shares
    ]
    return Result(result.ready, result.rates, result.times, [*result.ratios, *lines], result.facts)


def overlap(setup: Setup) -> Result:
    """All streams different, the next step scheduled while one runs, and one step after another."""
    streams = setup.concurrency
    adapters = setup.adapters("overlap", [setup.rank] * streams)
    adapter_bytes = streams * setup.shape.adapter_bytes(setup.rank)
    with ExitStack() as stack:
        ahead, apart = (
            setup.session(stack, adapter_bytes=adapter_bytes, pipeline_depth=depth)
            for depth in (DEPTH, 1)
        )
        return measured(
            setup,
            ahead.parts.ready,
            {"overlapped": (ahead, adapters), "one after another": (apart, adapters)},
            [Ratio("overlapped to one after another", "overlapped", "one after another")],
            {},
        )


def ranks(setup: Setup) -> Result:
    """Ranks 8, 16, 32 and 64 mixed against the same total rank spread evenly."""
    streams = max(len(MIXED_RANKS), setup.concurrency // len(MIXED_RANKS) * len(MIXED_RANKS))
    even = sum(MIXED_RANKS) // len(MIXED_RANKS)
    mixed = setup.adapters("mixed", [MIXED_RANKS[i % len(MIXED_RANKS)] for i in range(streams)])
    spread = setup.adapters("even", [even] * streams)
    adapter_bytes = 2 * streams * setup.shape.adapter_bytes(even)
    with ExitStack() as stack:
        session = setup.session(stack, adapter_bytes=adapter_bytes)
        return measured(
            setup,
            session.parts.ready,
            {"ranks mixed": (session, mixed), f"rank {even} each": (session, spread)},
            [
                Ratio(
                    f"cost of mixed ranks to rank {even} each",
                    f"rank {even} each",
                    "ranks mixed",
                    at_most=1.1,
                )
            ],
            {"mixed_ranks": list(MIXED_RANKS), "even_rank": even, "streams": streams},
        )


def idle(setup: Setup) -> Result:
    """One active adapter in an engine that knows no other, and in one that `num_idle` others have
    passed through and lie in, in pool, host memory or disk."""
    (active,) = setup.adapters("active", [setup.rank])
    others = _many_adapters(setup, "idle", rank=1)
    streams = setup.concurrency
    adapter_bytes = streams * setup.shape.adapter_bytes(setup.rank)
    with ExitStack() as stack:
        alone = setup.session(stack, adapter_bytes=adapter_bytes)
        crowded = setup.session(stack, adapter_bytes=adapter_bytes)
        for start in range(0, len(others), streams):
            crowded.closed_loop(others[start : start + streams], prompt_tokens=1, new_tokens=1)
        stats = crowded.parts.engine.stats()
        beside = f"beside {len(others)} idle"
        return measured(
            setup,
            alone.parts.ready,
            {"alone": (alone, [active] * streams), beside: (crowded, [active] * streams)},
            [Ratio(f"{beside} to alone", beside, "alone", at_least=0.95)],
            {
                "num_idle_in_pool": len(stats.pool_digests),
                "num_idle_in_host": len(stats.host_digests),
                "num_idle_on_disk": len(stats.disk_digests),
            },
        )


def many(setup: Setup) -> Result:
    """Single requests, 70 tokens in and 10 out: under one adapter, and under as many as there are
    in turn, each of which was used once before. The figures are mean latencies."""
    adapters = _many_adapters(setup, "many", rank=setup.rank)
    one, turns = adapters[:1], itertools.cycle(adapters)
    all_bytes = len(adapters) * setup.shape.adapter_bytes(setup.rank)
    all_bytes *= 2 if setup.dtype == "float32" else 1

    with ExitStack() as stack:
        session = setup.session(
            stack,
            adapter_bytes=min(all_bytes, _MANY_POOL_BYTES),
            host_bytes=int(_HOST_SLACK * all_bytes),
        )
        for start in range(0, len(adapters), setup.concurrency):
            session.closed_loop(
                adapters[start : start + setup.concurrency], prompt_tokens=1, new_tokens=1
            )

        def mean_latency(next_adapter: Callable[[], Adapter]) -> Case:
            def latency() -> float:
                taken = [
                    session.closed_loop([next_adapter()], prompt_tokens=70, new_tokens=10)
                    for _ in range(_REQUESTS_A_ROUND)
                ]
                return statistics.fmean(times.elapsed_s for times in taken)

            return latency

        in_turn = f"{len(adapters)} adapters in turn"
        cases = {
            "1 adapter": mean_latency(lambda: one[0]),
            in_turn: mean_latency(lambda: next(turns)),
        }
        for case in cases.values():
            case()
        seconds = interleaved(cases, setup.rounds)
        ratio = Ratio(f"latency of {in_turn} to 1", in_turn, "1 adapter", at_most=1.05)
        stats = session.parts.engine.stats()
        facts = {
            "mean_latency_s": seconds,
            "num_in_pool": len(stats.pool_digests),
            "num_in_host": len(stats.host_digests),
            "num_on_disk": len(stats.disk_digests),
        }
        return Result(session.parts.ready, {}, {}, judged([ratio], seconds), facts)


def measured(
    setup: Setup,
    ready: Ready,
    loops: dict[str, tuple[Session, Sequence[Adapter | None]]],
    ratios: list[Ratio],
    facts: dict[str, Any],
    samplings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Result:
    """Closed loops in turns. samplings: of those loops that are not greedy."""
    times: dict[str, list[Times]] = {name: [] for name in loops}
    samplings = samplings or {}
    turns: dict[str, Callable[[], float]] = {
        name: setup.turn(session, adapters, times[name], samplings.get(name))
        for name, (session, adapters) in loops.items()
    }
    for turn in turns.values():  # loads adapters, warms up
        turn()
    for seen in times.values():
        seen.clear()
    rates = interleaved(turns, setup.rounds)
    return Result(ready, rates, times, judged(ratios, rates), facts)


def _many_adapters(setup: Setup, name: str, *, rank: int) -> list[Adapter]:
    """`num_idle` adapters that share one weights file and differ in lora_alpha."""
    first = setup.folder / f"{name}0"
    write_adapter(first, setup.shape, rank=rank, seed=0)
    config = json.loads((first / "adapter_config.json").read_text())
    made = [adapter_at(first)]
    for index in range(1, setup.num_idle):
        path = setup.folder / f"{name}{index}"
        path.mkdir()
        os.link(first / "adapter_model.safetensors", path / "adapter_model.safetensors")
        changed = json.dumps({**config, "lora_alpha": rank + index})
        (path / "adapter_config.json").write_text(changed)
        made.append(adapter_at(path))
    return made
