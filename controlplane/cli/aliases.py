"""`chorale adapters alias`: second names."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli import output, views
from controlplane.cli.failures import reported
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, Timeout
from controlplane.registry.names import MAX_VERSION

aliases = typer.Typer(no_args_is_help=True, help="Set and remove second names of adapters.")


@aliases.command("set")
def set_(
    name: Annotated[str, typer.Argument(help="The alias.")],
    adapter: Annotated[str, typer.Argument(help="The adapter it is to mean.")],
    version: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_VERSION, help="Bind it to one version; 0 follows the current one."
        ),
    ] = 0,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Point alias NAME at ADAPTER; makes the alias, or moves it."""
    with reported(as_json=as_json, address=address):
        from chorale.client import Client

        with Client(address, timeout=timeout) as client:
            alias = client.adapters.set_alias(name, adapter, version=version)
        if as_json:
            output.print_json({"alias": views.alias(alias)})
        else:
            bound = f"@{alias.version}" if alias.version else ""
            print(f"{alias.name} now means {alias.adapter}{bound}")


@aliases.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="The alias.")],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Remove alias NAME; the adapter stays."""
    with reported(as_json=as_json, address=address):
        from chorale.client import Client

        with Client(address, timeout=timeout) as client:
            client.adapters.remove_alias(name)
        if as_json:
            output.print_json({"removed": name})
        else:
            print(f"removed alias {name}")
