"""`chorale bench`: load on a running endpoint, and what it did with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli.bench_options import Basis, Shared, command_of
from controlplane.cli.bench_run import length_range, measure
from controlplane.cli.failures import reported

if TYPE_CHECKING:
    from benchmarks.load.workload import Workload

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure any gRPC or OpenAI endpoint under the workloads that peers publish.",
)

Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Requests at any time.")]
Requests = Annotated[int, typer.Option("--requests", min=1, help="How many in all.")]
InputTokens = Annotated[int, typer.Option("--input-tokens", min=1, help="Of each prompt.")]
OutputTokens = Annotated[int, typer.Option("--output-tokens", min=1, help="Of each answer.")]


def slora(
    basis: Basis,
    alpha: Annotated[
        float, typer.Option(min=0.001, help="Of the power law over adapters; 1 is uniform.")
    ] = 1.0,
    cv: Annotated[
        float, typer.Option(min=0.001, help="Coefficient of variation of inter-arrival times.")
    ] = 1.0,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second.")] = 2.0,
    duration: Annotated[float, typer.Option(min=0.001, help="Seconds.")] = 60.0,
    input_tokens: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Uniform.")] = "8:512",
    output_tokens: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Uniform.")] = "8:512",
) -> Workload:
    """S-LoRA's workload: Gamma arrivals, adapters by a power law; an open loop."""
    from benchmarks.load import generators

    return generators.slora(
        basis.names,
        alpha=alpha,
        cv=cv,
        rate=rate,
        duration_s=duration,
        input_tokens=length_range("--input-tokens", input_tokens),
        output_tokens=length_range("--output-tokens", output_tokens),
        seed=basis.seed,
    )


def truefoundry(
    basis: Basis,
    requests: Requests = 100,
    concurrency: Concurrency = 1,
    input_tokens: InputTokens = 70,
    output_tokens: OutputTokens = 10,
) -> Workload:
    """70 tokens in, 10 out, round-robin over the adapters."""
    from benchmarks.load import generators

    return generators.truefoundry(
        basis.names,
        num_requests=requests,
        concurrency=concurrency,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def closed(
    basis: Basis,
    requests: Requests = 64,
    concurrency: Concurrency = 8,
    input_tokens: InputTokens = 128,
    output_tokens: OutputTokens = 64,
) -> Workload:
    """So many requests at any time, round-robin over the adapters."""
    from benchmarks.load import generators

    return generators.closed(
        basis.names,
        num_requests=requests,
        concurrency=concurrency,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def oversubscribed(
    basis: Basis,
    fits: Annotated[
        int, typer.Option(min=1, help="How many of the adapters the pool holds beside the KV.")
    ],
    requests: Requests = 64,
    concurrency: Concurrency = 8,
    input_tokens: InputTokens = 128,
    output_tokens: OutputTokens = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Of the two phases, in turns.")] = 3,
) -> Workload:
    """The first FITS adapters and all of them, in turns: what more adapters than fit cost."""
    from benchmarks.load import generators

    return generators.oversubscribed(
        basis.names,
        num_fitting=fits,
        num_requests=requests,
        concurrency=concurrency,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        rounds=rounds,
    )


def _measured(make: Callable[[list[str]], Workload], shared: Shared) -> None:
    with reported():
        measure(make, shared)


for _make in (slora, truefoundry, closed, oversubscribed):
    _needed = _make is oversubscribed
    bench.command(_make.__name__)(command_of(_make, _measured, needs_adapters=_needed))
