"""`chorale tenants`: what each tenant may ask for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlplane.cli import output
from controlplane.cli.connection import connected
from controlplane.cli.fleet_token import find_token
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, DataDir, Timeout
from controlplane.options import MAX_PRIORITY
from controlplane.tenants.limits import MAX_PER_MINUTE, MAX_RUNNING

if TYPE_CHECKING:
    from chorale.tenants import Tenants
    from chorale.v1 import tenant_pb2 as pb

tenants = typer.Typer(
    no_args_is_help=True,
    help="What each tenant may ask for: the request's `tenant`, over HTTP the header "
    "x-chorale-tenant. Needs the fleet token.",
)
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The tenant; '*' is each that has no limits of its own."),
]
_COLUMNS = ("requests/min", "burst", "tokens/min", "token burst", "max priority", "max running")


@tenants.command("set")
def set_(
    name: Name,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_PER_MINUTE, help="Generations; 0: none at all."),
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_PER_MINUTE, help="As many at once. Left out: those of a minute."
        ),
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            min=0, max=MAX_PER_MINUTE, help="Tokens of prompts and answers; 0: none at all."
        ),
    ] = None,
    token_burst: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_PER_MINUTE, help="As many at once. Left out: those of a minute."
        ),
    ] = None,
    max_priority: Annotated[
        int | None,
        typer.Option(
            min=-MAX_PRIORITY,
            max=MAX_PRIORITY,
            help="Highest priority it may ask for. Left out: the control plane's.",
        ),
    ] = None,
    max_running: Annotated[
        int | None,
        typer.Option(
            min=0, max=MAX_RUNNING, help="Generations at once, waiting ones too; 0: none at all."
        ),
    ] = None,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Set what tenant NAME may ask for, in place of what was set before; what is left out is not
    limited."""
    with _called(address, timeout, data_dir, as_json) as client:
        tenant = client.set(
            name,
            requests_per_minute=requests_per_minute,
            request_burst=burst,
            tokens_per_minute=tokens_per_minute,
            token_burst=token_burst,
            max_priority=max_priority,
            max_running=max_running,
        )
        if as_json:
            output.print_json({"tenant": view(tenant)})
        else:
            print(f"{_shown(tenant.name)}: {_sentence(view(tenant)['limits'])}")


@tenants.command("list")
def list_(
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """List the tenants that have limits."""
    with _called(address, timeout, data_dir, as_json) as client:
        views = [view(tenant) for tenant in client.list()]
    if as_json:
        output.print_json({"tenants": views})
        return
    output.print_table(
        "tenants",
        ("name", *_COLUMNS),
        [[each["name"], *map(_cell, each["limits"].values())] for each in views],
        right=_COLUMNS,
        empty="no tenant has limits",
    )


@tenants.command("show")
def show(
    name: Name,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Show the limits that hold for tenant NAME, and what it may ask for now."""
    with _called(address, timeout, data_dir, as_json) as client:
        found = client.get(name)
    available = {
        what: getattr(found, field) if found.HasField(field) else None
        for what, field in (("requests", "available_requests"), ("tokens", "available_tokens"))
    }
    num_running = found.num_running if found.HasField("num_running") else None
    if as_json:
        shown = {
            **view(found.tenant),
            "is_default": found.is_default,
            "available": available,
            "num_running": num_running,
        }
        output.print_json({"tenant": shown})
        return
    whose = " (those of '*')" if found.is_default else ""
    lines = [("tenant", name), ("limits", _sentence(view(found.tenant)["limits"]) + whose)]
    lines += [
        (f"{what} now", f"{value:,.1f}") for what, value in available.items() if value is not None
    ]
    if num_running is not None:
        lines.append(("running now", f"{num_running:,}"))
    output.print_fields(lines)


@tenants.command("remove")
def remove(
    name: Name,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Remove the limits of tenant NAME, which then has those of '*'."""
    with _called(address, timeout, data_dir, as_json) as client:
        client.remove(name)
    if as_json:
        output.print_json({"removed": name})
    else:
        print(f"removed the limits of {_shown(name)}")


def view(tenant: pb.Tenant) -> dict[str, Any]:
    """For --json; a limit that there is not is null."""
    limits = tenant.limits
    return {
        "name": tenant.name,
        "limits": {
            field.name: getattr(limits, field.name) if limits.HasField(field.name) else None
            for field in limits.DESCRIPTOR.fields
        },
    }


@contextmanager
def _called(
    address: str, timeout: float, data_dir: Path | None, as_json: bool
) -> Generator[Tenants]:
    with connected(address, timeout, as_json=as_json) as client:
        yield client.tenants(find_token(data_dir))


def _sentence(limits: dict[str, int | None]) -> str:
    parts = [
        f"{value:,} {name.replace('_', ' ')}"
        if name.endswith("_per_minute")
        else f"{name.replace('_', ' ')} {value:,}"
        for name, value in limits.items()
        if value is not None
    ]
    return ", ".join(parts) or "no limits"


def _cell(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _shown(name: str) -> str:
    return output.sanitized(name, one_line=True)
