"""`chorale adapters export` and `import`: the registry as lines of JSON."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from controlplane.cli import bulk
from controlplane.cli.backup_file import AdapterLine, AliasLine, read_lines, written
from controlplane.cli.bulk import Bulk, Done, Outcome
from controlplane.cli.connection import connected
from controlplane.cli.errors import BlockedError
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, SourceToken, Timeout
from controlplane.cli.restoring import has_merges, restored, restored_alias
from controlplane.cli.uploading import shown_count

if TYPE_CHECKING:
    from chorale.client import Client


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write; '-' is stdout.")],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
) -> None:
    """Write names, versions, sources, labels and aliases of all adapters to FILE, for `import`.

    The adapters' own files are not in it, nor which versions were current before.
    """
    with connected(address, timeout) as client:
        num_lines = _write(file, written(client.adapters.list()))
        if str(file) != "-":
            print(f"{num_lines} adapters and aliases are in {file}")


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="As `export` wrote it; '-' is stdin.")
    ],
    source_token: SourceToken = "",
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Adapters at once.")] = 4,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Make the registry what FILE says of its names: versions by number, which is current, aliases.

    Every version that is missing is read from its source and compared with its digest; what has
    changed is refused. Nothing that is not in FILE is touched, and the same may be run again. Ends
    with 4 when something could not be restored, and with 5 when nothing answers any more.
    """
    with connected(address, timeout, as_json=as_json) as client:
        adapters, aliases = read_lines(file)
        outcomes = _import(client, adapters, aliases, source_token, jobs)
        code = bulk.report(outcomes, "adapters and aliases", as_json=as_json)
        if code is not ExitCode.OK:
            raise typer.Exit(code)


def _import(
    client: Client,
    adapters: Sequence[AdapterLine],
    aliases: Sequence[AliasLine],
    source_token: str,
    jobs: int,
) -> list[Outcome]:
    """Merges come when what they are made of is there, and aliases when their targets are."""
    lines = {line.name: line for line in adapters}
    names = {line.name: line for line in aliases}
    merges = [name for name, line in lines.items() if has_merges(line)]

    def adapter(name: str) -> Done:
        return restored(client.adapters, lines[name], source_token)

    def components(name: str) -> Done:
        return restored(client.adapters, lines[name], source_token, merges=False)

    def alias(name: str) -> Done:
        return restored_alias(client.adapters, names[name])

    outcomes: dict[str, Outcome] = {}
    answers = True
    with shown_count(len(lines) + len(names)) as ended:
        for restore, wanted in (
            (adapter, [name for name in lines if name not in merges]),
            (components, merges),  # which may be versions of names that have merges, too
            (adapter, merges),
            (alias, list(names)),
        ):
            if not answers:
                outcomes |= {name: Outcome(name, "", "untried") for name in wanted}
                continue
            for outcome in _run(restore, wanted, jobs, None if restore is components else ended):
                answers = answers and outcome.state != "untried"
                outcomes[outcome.name] = outcome
    return list(outcomes.values())


def _run(
    restore: Callable[[str], Done],
    wanted: Sequence[str],
    jobs: int,
    ended: Callable[[], None] | None,
) -> list[Outcome]:
    bulk_ = Bulk(
        lambda name, _: restore(name), jobs=jobs, ended=lambda _: ended() if ended else None
    )
    return bulk_.run([(name, "") for name in wanted])


def _write(file: Path, lines: Iterator[bytes]) -> int:
    """The number of lines but the first; a file appears whole or not at all, behind a link, too.
    What is there and no file, as a pipe or a device, stays what it is and is written to."""
    if str(file) == "-":
        return _write_to(sys.stdout.buffer, lines)
    try:
        if file.exists() and not file.is_file():
            with file.open("wb") as opened:
                return _write_to(opened, lines)
        return _write_whole(Path(os.path.realpath(file)), lines)
    except OSError as error:
        raise BlockedError(
            "FILE_UNWRITABLE",
            f"cannot write {str(file)[:200]!r}: {error.strerror}",
            metadata={"path": str(file)},
        ) from error


def _write_whole(file: Path, lines: Iterator[bytes]) -> int:
    """Raises: OSError."""
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as opened:
            num_lines = _write_to(opened, lines)
            os.fsync(opened.fileno())
        new.replace(file)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
    return num_lines


def _write_to(opened: IO[bytes], lines: Iterator[bytes]) -> int:
    num_lines = 0
    for line in lines:
        opened.write(line)
        num_lines += 1
    opened.flush()
    return num_lines - 1


def install(app: typer.Typer) -> None:
    app.command("export")(export)
    app.command("import")(import_)
