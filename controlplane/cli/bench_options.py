"""The options that all `chorale bench` commands share, and how a command gets them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

if TYPE_CHECKING:
    from benchmarks.load.workload import Workload

Target = Annotated[
    str,
    typer.Option("--target", help="grpc(s)://HOST:PORT of a gateway, or http(s)://HOST:PORT/v1."),
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


@dataclass(frozen=True)
class Shared:
    """Each field is an option; its default is what it is when left out."""

    target: Target
    adapters: Adapters = ""
    model: Model = ""
    seed: Seed = 0
    warm_up: WarmUp = True
    ttft_slo: TtftSlo = None
    timeout: Timeout = 300.0
    vocab_size: VocabSize = 0
    extensions: Extensions = True
    json_path: JsonPath = None
    plot_path: PlotPath = None


class Basis(NamedTuple):
    """What a workload is made over. names: of the adapters."""

    names: list[str]
    seed: int


def command_of(
    make: Callable[..., Workload],
    run: Callable[[Callable[[list[str]], Workload], Shared], None],
    *,
    needs_adapters: bool,
) -> Callable[..., None]:
    """What typer takes for a workload: a function whose options are those of `make`, which come
    behind its `Basis`, and all of `Shared`. needs_adapters: --adapters cannot be left out."""
    own = _parameters(make)[1:]
    shared = _parameters(Shared)
    if needs_adapters:
        shared = [
            each.replace(default=each.empty) if each.name == "adapters" else each for each in shared
        ]

    def command(**given: Any) -> None:
        options = {each.name: given.pop(each.name) for each in own}
        common = Shared(**given)
        run(lambda names: make(Basis(names, common.seed), **options), common)

    command.__doc__ = make.__doc__
    ordered = [*shared[:2], *own, *shared[2:]]
    command.__signature__ = inspect.Signature(ordered)  # pyright: ignore[reportFunctionMemberAccess]
    return command


def _parameters(of: Callable[..., Any]) -> list[inspect.Parameter]:
    """By keyword, so that one without default may follow others."""
    # A workload's own type is of another room, and slow to import for those who only ask for help.
    types = get_type_hints(of, localns={"Workload": object}, include_extras=True)
    parameters = inspect.signature(of).parameters.values()
    return [
        each.replace(kind=each.KEYWORD_ONLY, annotation=types[each.name]) for each in parameters
    ]
