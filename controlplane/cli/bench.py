"""`chorale bench`: load on a running endpoint, and what it did with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.bench_run import Shared, length_range, measure
from controlplane.cli.failures import reported

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure any gRPC or OpenAI endpoint under the workloads that peers publish.",
)

Target = Annotated[
    str,
    typer.Option("--target", help="grpc://HOST:PORT of a gateway, or http://HOST:PORT/v1."),
]
Adapters = Annotated[
    str,
    typer.Option(
        "--adapters",
        help="Names with commas between, or a directory of PEFT directories, which are registered "
        "when the target is gRPC. Left out: the base model alone.",
    ),
]
Model = Annotated[
    str, typer.Option("--model", help="What the base model is called there. Left out: asked.")
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, help="Of prompts and workload; take another for each run on one server."
    ),
]
WarmUp = Annotated[
    bool, typer.Option("--warm-up/--no-warm-up", help="Use each adapter once before measuring.")
]
TtftSlo = Annotated[
    float | None,
    typer.Option("--ttft-slo", min=0.001, help="Objective for the first token, in seconds."),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.001, help="Seconds that a request may take.")
]
VocabSize = Annotated[
    int,
    typer.Option(
        "--vocab-size", min=0, help="Prompts are drawn from so many token ids; 0 asks the target."
    ),
]
Extensions = Annotated[
    bool,
    typer.Option(
        "--extensions/--no-extensions",
        help="Over HTTP, send ignore_eos and return_token_ids, which plain OpenAI does not know.",
    ),
]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Write everything here.")]
PlotPath = Annotated[Path | None, typer.Option("--plot", help="Write a PNG here.")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Requests at any time.")]
Requests = Annotated[int, typer.Option("--requests", min=1, help="How many in all.")]
InputTokens = Annotated[int, typer.Option("--input-tokens", min=1, help="Of each prompt.")]
OutputTokens = Annotated[int, typer.Option("--output-tokens", min=1, help="Of each answer.")]


@bench.command("slora")
def slora(
    target: Target,
    adapters: Adapters = "",
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
    model: Model = "",
    seed: Seed = 0,
    warm_up: WarmUp = True,
    ttft_slo: TtftSlo = None,
    timeout: Timeout = 300.0,
    vocab_size: VocabSize = 0,
    extensions: Extensions = True,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """S-LoRA's workload: Gamma arrivals, adapters by a power law; an open loop."""
    with reported():
        from benchmarks.load import generators

        lengths = {
            "input_tokens": length_range("--input-tokens", input_tokens),
            "output_tokens": length_range("--output-tokens", output_tokens),
        }
        shared = Shared(
            target, adapters, model, seed, warm_up, ttft_slo, timeout, vocab_size, extensions,
            json_path, plot_path,
        )  # fmt: skip
        measure(
            lambda names: generators.slora(
                names, alpha=alpha, cv=cv, rate=rate, duration_s=duration, seed=seed, **lengths
            ),
            shared,
        )


@bench.command("truefoundry")
def truefoundry(
    target: Target,
    adapters: Adapters = "",
    requests: Requests = 100,
    concurrency: Concurrency = 1,
    input_tokens: InputTokens = 70,
    output_tokens: OutputTokens = 10,
    model: Model = "",
    seed: Seed = 0,
    warm_up: WarmUp = True,
    ttft_slo: TtftSlo = None,
    timeout: Timeout = 300.0,
    vocab_size: VocabSize = 0,
    extensions: Extensions = True,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """70 tokens in, 10 out, round-robin over the adapters."""
    with reported():
        from benchmarks.load import generators

        shared = Shared(
            target, adapters, model, seed, warm_up, ttft_slo, timeout, vocab_size, extensions,
            json_path, plot_path,
        )  # fmt: skip
        measure(
            lambda names: generators.truefoundry(
                names,
                num_requests=requests,
                concurrency=concurrency,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
            ),
            shared,
        )


@bench.command("closed")
def closed(
    target: Target,
    adapters: Adapters = "",
    requests: Requests = 64,
    concurrency: Concurrency = 8,
    input_tokens: InputTokens = 128,
    output_tokens: OutputTokens = 64,
    model: Model = "",
    seed: Seed = 0,
    warm_up: WarmUp = True,
    ttft_slo: TtftSlo = None,
    timeout: Timeout = 300.0,
    vocab_size: VocabSize = 0,
    extensions: Extensions = True,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """So many requests at any time, round-robin over the adapters."""
    with reported():
        from benchmarks.load import generators

        shared = Shared(
            target, adapters, model, seed, warm_up, ttft_slo, timeout, vocab_size, extensions,
            json_path, plot_path,
        )  # fmt: skip
        measure(
            lambda names: generators.closed(
                names,
                num_requests=requests,
                concurrency=concurrency,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
            ),
            shared,
        )


@bench.command("oversubscribed")
def oversubscribed(
    target: Target,
    adapters: Adapters,
    fits: Annotated[
        int, typer.Option(min=1, help="How many of the adapters the pool holds beside the KV.")
    ],
    requests: Requests = 64,
    concurrency: Concurrency = 8,
    input_tokens: InputTokens = 128,
    output_tokens: OutputTokens = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Of the two phases, in turns.")] = 3,
    model: Model = "",
    seed: Seed = 0,
    warm_up: WarmUp = True,
    ttft_slo: TtftSlo = None,
    timeout: Timeout = 300.0,
    vocab_size: VocabSize = 0,
    extensions: Extensions = True,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """The first FITS adapters and all of them, in turns: what more adapters than fit cost."""
    with reported():
        from benchmarks.load import generators

        shared = Shared(
            target, adapters, model, seed, warm_up, ttft_slo, timeout, vocab_size, extensions,
            json_path, plot_path,
        )  # fmt: skip
        measure(
            lambda names: generators.oversubscribed(
                names,
                num_fitting=fits,
                num_requests=requests,
                concurrency=concurrency,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                rounds=rounds,
            ),
            shared,
        )
