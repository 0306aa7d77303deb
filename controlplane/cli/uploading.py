"""Uploads and their progress, on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli.errors import NoSuchFileError, UsageError

if TYPE_CHECKING:
    from chorale.adapters import Adapters
    from chorale.upload import OnProgress


def uploaded(registry: Adapters, directory: str, on_progress: OnProgress | None) -> str:
    """Sends a directory of this machine; the source to register.

    Raises: UsageError, NoSuchFileError; ChoraleError.
    """
    if not directory or "://" in directory or directory.startswith("blob:"):
        raise UsageError(
            "UPLOAD_NOT_LOCAL",
            f"--upload sends a directory of this machine, not {directory[:200]!r}: leave it out",
        )
    try:
        return registry.upload(Path(directory), on_progress=on_progress).source
    except OSError as error:
        raise NoSuchFileError(
            "ADAPTER_UNREADABLE",
            f"cannot read the adapter in {directory[:200]!r}: {error.filename}: {error.strerror}",
            metadata={"path": str(error.filename)},
        ) from error


@contextmanager
def shown_progress() -> Generator[Callable[[str, int, int], None] | None]:
    """What to call with file name, bytes and size (0: not known); None when nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Progress(*columns, TransferSpeedColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(file: str, done_bytes: int, total_bytes: int) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=total_bytes or None)
            bars.update(tasks[file], completed=done_bytes, total=total_bytes or None)

        yield show


@contextmanager
def shown_count(total: int) -> Generator[Callable[[], None]]:
    """What to call for each of `total` that is done, from any thread."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=total)
        yield lambda: bars.advance(task)
