"""A secret in a file of its own, as Docker and Kubernetes hand them to a process."""

from __future__ import annotations

from pathlib import Path

_MAX_BYTES = 4096


def read_secret(path: Path) -> str:
    """What the file holds, without the white space around it.

    Raises: OSError; ValueError when that is not one line of printable ASCII.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    secret = content.decode("ascii", "replace").strip()
    if len(content) > _MAX_BYTES or not (secret and secret.isascii() and secret.isprintable()):
        raise ValueError(f"must hold one line of printable ASCII, at most {_MAX_BYTES} bytes")
    return secret
