"""One workload against one target, from describing it to the report."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.errors import TargetError, WorkloadError
from benchmarks.load import generators
from benchmarks.load.driver import Driver
from benchmarks.load.lag import watched
from benchmarks.load.live import ShowPhase
from benchmarks.load.metrics import summary
from benchmarks.load.progress import Progress
from benchmarks.load.provenance import provenance
from benchmarks.load.records import Record
from benchmarks.load.target import Target, TargetInfo, open_target
from benchmarks.load.workload import FIRST_TOKEN_ID, Phase, Workload, prompt_of

SCHEMA = "chorale-bench/1"
DEFAULT_VOCAB_SIZE = 256  # every byte-level vocabulary has as many
_MAX_REPORTED_URL = 200


@dataclass(frozen=True)
class RunOptions:
    """sources: adapters to register first, name -> PEFT directory.

    seed: of the prompts. Two runs of one seed send the same prompts, which a server with a prefix
    cache has seen the second time: take another seed for each run against one server.
    vocab_size: 0 takes the endpoint's own, or 256 where it does not say.
    api_key: what the endpoint asks for; it is in no report.
    tls_ca_file: PEM of the authorities to trust over TLS; None: gRPC's or Python's own.
    """

    url: str
    model: str = ""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    seed: int = 0
    vocab_size: int = 0
    ttft_objective_s: float | None = None
    timeout_s: float = 300.0
    max_in_flight: int = 4096
    extensions: bool = True
    api_key: str = ""
    tls_ca_file: Path | None = None


async def run(workload: Workload, options: RunOptions, show: ShowPhase) -> dict[str, Any]:
    """Runs all phases; the report (see docs/benchmarks.md). Raises: BenchError."""
    target = open_target(
        options.url,
        model=options.model,
        extensions=options.extensions,
        api_key=options.api_key,
        tls_ca_file=options.tls_ca_file,
    )
    try:
        info = await target.describe()
        vocab_size = _vocab_size(options, info)
        if options.sources:
            await target.register(options.sources)
        phases = await run_phases(target, workload, options, vocab_size, show)
    finally:
        await target.close()
    return {
        "schema": SCHEMA,
        "benchmark": workload.name,
        "workload": dict(workload.parameters),
        "target": {
            "url": target.url[:_MAX_REPORTED_URL],
            "base_model": info.base_model,
            **info.details,
        },
        "client": provenance(),
        "prompts": {"seed": options.seed, "vocab_size": vocab_size},
        "phases": phases,
        "ratios": ratios(phases),
    }


async def run_phases(
    target: Target,
    workload: Workload,
    options: RunOptions,
    vocab_size: int,
    show: ShowPhase = lambda progress: None,
) -> list[dict[str, Any]]:
    """One report for each counted phase.

    Raises: TargetError when a warm-up request fails: what follows would measure failures.
    """
    reports: list[dict[str, Any]] = []
    for number, phase in enumerate(workload.phases):
        prompts = await asyncio.to_thread(_prompts, number, phase, options.seed, vocab_size)
        progress = Progress(phase, f"{number + 1}/{len(workload.phases)}")
        show(progress)
        driver = Driver(
            target,
            phase,
            prompts,
            timeout_s=options.timeout_s,
            max_in_flight=options.max_in_flight,
            observe=progress.observe,
        )
        async with watched() as lag:
            records = await driver.run()
        if not phase.counted:
            _check_warm_up(records)
            continue
        open_loop = not phase.concurrency
        dispatch_lag_s = [record.sent_s - record.due_s for record in records if open_loop]
        reports.append(
            {
                "name": phase.name,
                "loop": "open" if open_loop else "closed",
                "concurrency": phase.concurrency,
                "summary": summary(records, ttft_objective_s=options.ttft_objective_s),
                "client_lag": lag.report(dispatch_lag_s),
                "requests": [_request_report(record) for record in records],
            }
        )
    return reports


def ratios(phases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What phases that take turns are there for: over / fits, of medians over the rounds."""
    names = {phase["name"] for phase in phases}
    if names != {"fits", "over"}:
        return {}
    found: dict[str, float] = {}
    for figure, percentile in (("ttft_s", "p50"), ("ttft_s", "p99"), ("latency_s", "p50")):
        medians = {name: _median(phases, name, figure, percentile) for name in names}
        fits, over = medians["fits"], medians["over"]
        if fits and over:
            found[f"{figure}_{percentile}_over_to_fits"] = over / fits
    return found


def _median(
    phases: Sequence[Mapping[str, Any]], name: str, figure: str, percentile: str
) -> float | None:
    values = [
        phase["summary"][figure][percentile]
        for phase in phases
        if phase["name"] == name and phase["summary"][figure]
    ]
    return statistics.median(values) if values else None


def adapters_of(workload: Workload) -> list[str]:
    """The adapters that it uses, each once, in order of first use."""
    used = (request.adapter for phase in workload.phases for request in phase.requests)
    return [name for name in dict.fromkeys(used) if name]


def warmed_up(workload: Workload) -> Workload:
    return generators.with_warm_up(workload, adapters_of(workload))


def _prompts(number: int, phase: Phase, seed: int, vocab_size: int) -> list[list[int]]:
    return [
        prompt_of(number, request, seed=seed, vocab_size=vocab_size) for request in phase.requests
    ]


def _vocab_size(options: RunOptions, info: TargetInfo) -> int:
    size = options.vocab_size or info.vocab_size or DEFAULT_VOCAB_SIZE
    if size <= FIRST_TOKEN_ID:
        raise WorkloadError("vocabulary size", size, f"must be above {FIRST_TOKEN_ID}")
    return size


def _check_warm_up(records: Sequence[Record]) -> None:
    failed = [record for record in records if record.error]
    if failed:
        first = failed[0]
        raise TargetError(
            first.error,
            f"the warm-up request to {first.adapter or 'the base model'!r} failed:"
            f" {first.error_message}",
            metadata={"adapter": first.adapter, "num_failed": str(len(failed))},
        )


def _request_report(record: Record) -> dict[str, Any]:
    return {
        "index": record.index,
        "adapter": record.adapter,
        "prompt_tokens": record.num_prompt_tokens,
        "wanted_tokens": record.num_wanted_tokens,
        "tokens": record.num_tokens,
        "due_s": record.due_s,
        "sent_s": record.sent_s,
        "done_s": record.done_s,
        "ttft_s": record.ttft_s,
        "token_s": [round(at_s, 6) for at_s in record.token_s],
        "token_counts": record.token_counts,
        "queue_s": record.queue_s,
        "adapter_load_s": record.adapter_load_s,
        "error": record.error,
    }
