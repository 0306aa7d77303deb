"""The fleet token: where `chorale up` leaves it for the operator, and where commands find it."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from chorale.secret_file import read_secret
from controlplane.cli.errors import BlockedError
from controlplane.cli.supervisor.data_dir import FLEET_TOKEN_NAME, default_data_dir

VARIABLE = "CHORALE_FLEET_TOKEN"
FILE_VARIABLE = "CHORALE_FLEET_TOKEN_FILE"


def token_to_serve_with() -> str:
    """The environment's, which this user's other commands show too; else a new one."""
    return os.environ.get(VARIABLE, "").strip() or secrets.token_urlsafe(32)


def write_token(path: Path, token: str) -> None:
    """Replaces the file at `path`, mode 0600. Raises: OSError."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w") as file:
        file.write(token + "\n")
    new.replace(path)


def find_token(data_dir: Path | None) -> str:
    """From the environment, else from the file that the environment names, else the one of the
    `chorale up` with that data dir; None: the default one.

    Raises: BlockedError (FLEET_TOKEN_MISSING) when it is not there.
    """
    if token := os.environ.get(VARIABLE, "").strip():
        return token
    named = os.environ.get(FILE_VARIABLE, "")
    path = Path(named) if named else (data_dir or default_data_dir()) / FLEET_TOKEN_NAME
    with contextlib.suppress(OSError, ValueError):
        return read_secret(path)
    raise BlockedError(
        "FLEET_TOKEN_MISSING",
        f"this needs the fleet token: set {VARIABLE} or "
        f"{FILE_VARIABLE}, or name with --data-dir the directory of a running `chorale up`; {path} "
        "does not give it",
        metadata={"variable": VARIABLE, "path": str(path)},
    )
