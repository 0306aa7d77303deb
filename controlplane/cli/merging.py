"""`chorale adapters merge`: an adapter made of others."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli import output, registered, views
from controlplane.cli.connection import connected
from controlplane.cli.errors import UsageError
from controlplane.cli.labels import Labels, labels_of
from controlplane.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    KeepCurrent,
    New,
    Timeout,
)
from storage.merge.recipe import MAX_SEED

if TYPE_CHECKING:
    from chorale.v1 import adapter_registry_pb2 as registry_pb


class Strategy(StrEnum):
    CAT = "cat"
    LINEAR = "linear"
    TIES = "ties"
    MAGNITUDE_PRUNE = "magnitude_prune"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"


class Sign(StrEnum):
    TOTAL = "total"
    FREQUENCY = "frequency"


def merge(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The merge's name.")],
    components: Annotated[
        list[str],
        typer.Argument(
            metavar="COMPONENT=WEIGHT...",
            help="Adapters by name, NAME@VERSION or alias; what each adds is multiplied by its "
            "weight, which may be negative.",
        ),
    ],
    strategy: Annotated[
        Strategy,
        typer.Option(
            help="cat is the exact sum, of any ranks up to 256 together; the others are PEFT's and "
            "want equal ranks."
        ),
    ] = Strategy.CAT,
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of values that ties, magnitude_prune and dare_* keep, up to 1; required."
        ),
    ] = None,
    majority_sign: Annotated[
        Sign | None,
        typer.Option(
            help="Whether ties and dare_ties go by the sum of values (total, the default) or by "
            "their number (frequency)."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Of what dare_* draws; else 0.")
    ] = None,
    label: Labels = None,
    new: New = False,
    keep_current: KeepCurrent = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Make a weighted combination of adapters the newest, and current, version of NAME.

    Components are pinned as they are now; their later versions change nothing. The merge is an
    adapter like any other: chorale adapters merge polite-sql sql=1.0 polite@2=0.4
    """
    with connected(address, timeout, as_json=as_json) as client:
        response = client.adapters.merge(
            name,
            _weights(components),
            strategy=strategy.value,
            density=density,
            majority_sign=majority_sign.value if majority_sign else "",
            seed=seed,
            labels=labels_of(label or []),
            must_be_new=new,
            keep_current=keep_current,
        )
        if as_json:
            output.print_json(views.registered(response))
        else:
            print(registered.sentence(response))


def described(made: registry_pb.Merge) -> list[tuple[str, str]]:
    """Fields for people: how it is made, then each component."""
    view = views.merge(made)
    how = [
        f"{key}={view[key]}"
        for key in ("density", "majority_sign", "seed")
        if view[key] is not None
    ]
    components = [
        (f"{each.weight:g} x", f"{each.adapter} {each.digest[:12]} {each.source}")
        for each in made.components
    ]
    return [("merge", " ".join([view["strategy"], *how])), *components]


def _weights(components: list[str]) -> dict[str, float]:
    """References to weights. Raises: UsageError."""
    weights: dict[str, float] = {}
    for text in components:
        reference, equals, weight = text.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            number = None
        if not equals or number is None:
            raise _bad(text, "it must be COMPONENT=WEIGHT with a number, as in sql@2=0.7")
        if reference in weights:
            raise _bad(text, f"{reference[:200]} is there twice")
        weights[reference] = number
    return weights


def _bad(component: str, problem: str) -> UsageError:
    return UsageError(
        "MERGE_COMPONENT_INVALID",
        f"component {component[:200]!r}: {problem}",
        metadata={"component": component[:200]},
    )


def install(app: typer.Typer) -> None:
    app.command("merge")(merge)
