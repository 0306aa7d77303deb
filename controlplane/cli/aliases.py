"""`chorale adapters alias`: second names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli import output, views
from controlplane.cli.connection import connected
from controlplane.cli.errors import UsageError
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, Timeout
from controlplane.registry.names import MAX_VERSION

if TYPE_CHECKING:
    from chorale.v1 import adapter_registry_pb2 as registry_pb

aliases = typer.Typer(no_args_is_help=True, help="Set and remove second names of adapters.")


@aliases.command("set")
def set_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The alias.")],
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[@VERSION][=WEIGHT]...",
            help="What it is to mean; several, each with a weight, share its requests.",
        ),
    ],
    version: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_VERSION, help="As @VERSION of the one ADAPTER; 0 follows the current."
        ),
    ] = 0,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Point alias NAME at an adapter, or at several versions by weight: support@3=95 support@4=5.

    Makes the alias, or replaces what it was, at once. A user or routing key stays with its version
    as long as the weights stay; one whose share grows takes users from the others, and gives none
    back. Weight 0 keeps a target without requests.
    """
    with connected(address, timeout, as_json=as_json) as client:
        alias = client.adapters.set_alias(name, targets=_weights(targets, version))
        if as_json:
            output.print_json({"alias": views.alias(alias)})
        else:
            print(f"{alias.name} now means {meaning(alias)}")


@aliases.command("remove")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The alias.")],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Remove alias NAME; the adapter stays."""
    with connected(address, timeout, as_json=as_json) as client:
        client.adapters.remove_alias(name)
        if as_json:
            output.print_json({"removed": name})
        else:
            print(f"removed alias {name}")


def meaning(alias: registry_pb.Alias) -> str:
    """One line, as "voice@2", or "95% voice@1, 5% voice"."""
    if not alias.targets:
        return _reference(alias)
    total = sum(target.weight for target in alias.targets)
    return ", ".join(
        f"{100 * target.weight / total:.4g}% {_reference(target)}" for target in alias.targets
    )


def _reference(target: registry_pb.Alias | registry_pb.AliasTarget) -> str:
    return f"{target.adapter}@{target.version}" if target.version else target.adapter


def _weights(targets: list[str], version: int) -> dict[str, int]:
    """References to weights. Raises: UsageError."""
    weights: dict[str, int] = {}
    for text in targets:
        reference, equals, weight = text.partition("=")
        if len(targets) > 1 and not equals:
            raise _bad(text, "of several targets each has a weight, as support@4=5")
        if equals and not (weight.isascii() and weight.isdecimal() and len(weight) <= 9):
            raise _bad(text, "a weight is a whole number, as in support@4=5")
        if version:
            if len(targets) > 1 or "@" in reference:
                raise _bad(text, "--version is for one ADAPTER without @VERSION")
            reference = f"{reference}@{version}"
        if reference in weights:
            raise _bad(text, f"{reference[:200]} is there twice")
        weights[reference] = int(weight) if equals else 1
    return weights


def _bad(target: str, problem: str) -> UsageError:
    return UsageError(
        "ALIAS_TARGET_INVALID",
        f"target {target[:200]!r}: {problem}",
        metadata={"target": target[:200]},
    )
