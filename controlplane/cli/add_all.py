"""`chorale adapters add-all`: every adapter below a directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import bulk
from controlplane.cli.bulk import Bulk, Done
from controlplane.cli.connection import connected
from controlplane.cli.errors import NoSuchFileError, UsageError
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.labels import Labels, labels_of
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, Timeout
from controlplane.cli.uploading import shown_count, uploaded

CONFIG_NAME = "adapter_config.json"
MAX_ADAPTERS = 1_000_000
MAX_FOLDERS = 4_000_000


def add_all(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="What is searched for PEFT directories.")
    ],
    prefix: Annotated[
        str, typer.Option(help="Put before each name, which is the path below DIRECTORY.")
    ] = "",
    new: Annotated[
        bool, typer.Option("--new", help="Leave names that exist as they are, whatever is there.")
    ] = False,
    upload: Annotated[
        bool, typer.Option("--upload", help="Send the directories of this machine.")
    ] = False,
    base_model: Annotated[
        str, typer.Option(help="Base model to bind to; else the one that each adapter names.")
    ] = "",
    label: Labels = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Registrations at once.")] = 4,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Register every adapter below DIRECTORY: DIRECTORY/team/voice becomes PREFIXteam/voice.

    As `adapters add` for each: content that a name has already is no new version, so the same may
    be run again, after an interruption or with more adapters. Ends with 4 when some were refused,
    whose reasons it tells, and with 5 when nothing answers any more.
    """
    with connected(address, timeout, as_json=as_json) as client:
        labels = labels_of(label or [])
        wanted = [(f"{prefix}{name}", str(path)) for name, path in found(directory)]
        from chorale.errors import AlreadyExistsError

        def register(name: str, source: str) -> Done:
            if upload:
                source = uploaded(client.adapters, source, None)
            try:
                answer = client.adapters.register(
                    name, source, base_model=base_model, labels=labels, must_be_new=new
                )
            except AlreadyExistsError as error:
                if error.reason != "ADAPTER_EXISTS":
                    raise
                return Done("kept")
            return Done("added" if answer.created else "unchanged", answer.version.version)

        with shown_count(len(wanted)) as ended:
            outcomes = Bulk(register, jobs=jobs, ended=lambda _: ended()).run(wanted)
        code = bulk.report(outcomes, "adapters", as_json=as_json)
        if code is not ExitCode.OK:
            raise typer.Exit(code)


def found(directory: Path) -> list[tuple[str, Path]]:
    """Name, which is the path below `directory`, and absolute path of each adapter, in order of
    name. What is inside an adapter's directory, as checkpoints, is none of its own. Links are
    followed: who has two names is there twice.

    Raises: NoSuchFileError, UsageError.
    """
    top = directory.absolute()
    if not top.is_dir():
        raise NoSuchFileError(
            "DIRECTORY_NOT_FOUND",
            f"{str(directory)[:200]!r} is no directory of this machine: give one with adapters"
            " in it",
            metadata={"path": str(directory)},
        )
    if (top / CONFIG_NAME).is_file():
        raise UsageError(
            "DIRECTORY_IS_ADAPTER",
            f"{str(directory)[:200]!r} is an adapter itself: use `chorale adapters add NAME`, or "
            "name the directory above it",
        )
    adapters: list[tuple[str, Path]] = []
    inside: dict[str, frozenset[str]] = {}  # path -> real paths of it and those that it is in
    for num_folders, (path, folders, files) in enumerate(
        os.walk(top, followlinks=True, onerror=_unreadable)
    ):
        if num_folders > MAX_FOLDERS:  # links to each other make ever more names
            raise UsageError(
                "TOO_MANY_FOLDERS",
                f"{str(directory)[:200]!r} holds more than {MAX_FOLDERS:,} directories: name a part"
                " of it, and add the parts one by one",
                metadata={"path": str(directory), "max_folders": str(MAX_FOLDERS)},
            )
        real, above = os.path.realpath(path), inside.get(os.path.dirname(path), frozenset())
        if real in above:  # a link that leads back
            folders.clear()
            continue
        folders.sort()
        if CONFIG_NAME in files:
            folders.clear()
            adapters.append((Path(path).relative_to(top).as_posix(), Path(path)))
        if folders:
            inside[path] = above | {real}
        if len(adapters) > MAX_ADAPTERS:
            raise UsageError(
                "TOO_MANY_ADAPTERS",
                f"{str(directory)[:200]!r} holds more than {MAX_ADAPTERS:,} adapters: name a part"
                " of it, and add the parts one by one",
                metadata={"path": str(directory), "max_adapters": str(MAX_ADAPTERS)},
            )
    if not adapters:
        raise NoSuchFileError(
            "NO_ADAPTERS",
            f"no directory below {str(directory)[:200]!r} has an {CONFIG_NAME}",
            metadata={"path": str(directory)},
        )
    return sorted(adapters)


def _unreadable(error: OSError) -> None:
    raise NoSuchFileError(
        "DIRECTORY_UNREADABLE",
        f"cannot look into {str(error.filename)[:200]!r}: {error.strerror}",
        metadata={"path": str(error.filename)},
    ) from error


def install(app: typer.Typer) -> None:
    app.command("add-all")(add_all)
