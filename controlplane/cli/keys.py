"""`chorale keys`: the file of API keys that a gateway is started with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlplane.cli import output
from controlplane.cli.errors import NoSuchFileError, UsageError
from controlplane.cli.failures import reported
from controlplane.cli.options import AsJson
from controlplane.gateway.access.scope import Scope

if TYPE_CHECKING:
    from controlplane.gateway.access.keys import ApiKey, Keys

keys = typer.Typer(
    no_args_is_help=True,
    help="The file of API keys that `chorale gateway` and `up` take by --api-keys-file. It holds "
    "hashes; gateways read it again when it changes.",
)
File = Annotated[
    Path,
    typer.Option("--file", envvar="CHORALE_API_KEYS_FILE", help="The file of keys."),
]
Name = Annotated[str, typer.Argument(help="What people call the key.")]


@keys.command("new")
def new(
    name: Name,
    file: File,
    tenant: Annotated[
        str,
        typer.Option(help="Whom its requests are counted for; '*': whom each request names."),
    ],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            help="generate: generations. observe: metrics, adapters and data planes, read only. "
            "manage: these too, and changing them. Repeatable; left out: generate."
        ),
    ] = None,
    expires_in: Annotated[
        float | None, typer.Option(min=0.0, max=36_500.0, help="Days. Left out: never.")
    ] = None,
) -> None:
    """Make a key, write its hash to the file, and print it: it is not shown again."""
    with reported():
        from controlplane.gateway.access.keys import ApiKey, hash_of, new_key

        key = new_key()
        ends = None
        if expires_in is not None:
            ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=expires_in)
        scopes = tuple(dict.fromkeys(scope or [Scope.GENERATE]))
        entry = ApiKey(name=name, sha256=hash_of(key), tenant=tenant, scopes=scopes, expires=ends)
        if problem := entry.problem():
            raise UsageError("API_KEY_ENTRY_INVALID", problem)

        def added(old: Sequence[ApiKey]) -> list[ApiKey]:
            if any(each.name == name for each in old):
                raise UsageError(
                    "API_KEY_EXISTS",
                    f"{file} has a key {name!r}: give another NAME, or remove that one first",
                )
            return [*old, entry]

        _change(file, added)
    print(key)


@keys.command("list")
def list_(file: File, as_json: AsJson = False) -> None:
    """List the keys of the file."""
    with reported(as_json=as_json):
        entries = _read(file).entries
    if as_json:
        output.print_json({"keys": [_view(each) for each in entries]})
        return
    output.print_table(
        "API keys",
        ("name", "tenant", "scopes", "expires"),
        [[each.name, each.tenant, ", ".join(each.scopes), _ending(each)] for each in entries],
        empty="the file has no keys: nobody gets in",
    )


@keys.command("remove")
def remove(name: Name, file: File) -> None:
    """Remove a key: gateways refuse it within seconds."""
    with reported():

        def without(old: Sequence[ApiKey]) -> list[ApiKey]:
            left = [each for each in old if each.name != name]
            if len(left) == len(old):
                raise NoSuchFileError("API_KEY_NOT_FOUND", f"{file} has no key {name[:128]!r}")
            return left

        _read(file)  # what is not there is not made
        _change(file, without)
    print(f"removed {output.sanitized(name, one_line=True)}")


def _view(entry: ApiKey) -> dict[str, Any]:
    return {
        "name": entry.name,
        "tenant": entry.tenant,
        "scopes": list(entry.scopes),
        "expires": None if entry.expires is None else entry.expires.isoformat(),
        "has_ended": entry.has_ended(),
    }


def _ending(entry: ApiKey) -> str:
    if entry.expires is None:
        return "never"
    return f"{entry.expires:%Y-%m-%d %H:%M %Z}" + (" (ended)" if entry.has_ended() else "")


def _read(file: Path) -> Keys:
    """Raises: NoSuchFileError, UsageError."""
    from controlplane.gateway.access.key_file import read_keys

    try:
        return read_keys(file)
    except (OSError, ValueError) as error:
        raise _unusable(file, error) from error


def _change(file: Path, change: Callable[[Sequence[ApiKey]], Sequence[ApiKey]]) -> None:
    """Raises: NoSuchFileError, UsageError, what `change` raises."""
    from controlplane.gateway.access.key_file import change_keys

    try:
        change_keys(file, change)
    except (OSError, ValueError) as error:
        raise _unusable(file, error) from error


def _unusable(file: Path, error: OSError | ValueError) -> NoSuchFileError | UsageError:
    kind = NoSuchFileError if isinstance(error, FileNotFoundError) else UsageError
    why = error.strerror if isinstance(error, OSError) else str(error)
    return kind("API_KEYS_FILE_INVALID", f"--file {file}: {why}", metadata={"path": str(file)})
