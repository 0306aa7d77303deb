"""The file of API keys: JSON, `{"keys": [{"name": …, "sha256": …, "tenant": …, …}]}`."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import msgspec

from controlplane.gateway.access.keys import ApiKey, Keys

_MAX_BYTES = 16 << 20


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: list[ApiKey]


def read_keys(path: Path) -> Keys:
    """Raises: OSError; ValueError that says what is wrong with the content."""
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"must have at most {_MAX_BYTES} bytes")
    try:
        return Keys(msgspec.json.decode(content, type=_File).keys)
    except msgspec.DecodeError as error:  # a ValidationError is one, too
        raise ValueError(str(error)) from error


def change_keys(path: Path, change: Callable[[Sequence[ApiKey]], Sequence[ApiKey]]) -> None:
    """Replaces the file by what `change` makes of its entries, none if it is missing; readers see
    the old one or the new one. Only its owner may read a new file; another keeps its mode and, as
    far as we may say so, its owner. Of a link it is the file behind that is replaced.

    Raises: OSError; ValueError for what was or would be wrong; what `change` raises.
    """
    path = path.resolve()
    with _locked(path.parent):
        try:
            old, status = read_keys(path).entries, path.stat()
        except FileNotFoundError:
            old, status = (), None
        entries = Keys(change(old)).entries
        content = msgspec.json.format(msgspec.json.encode(_File(list(entries))), indent=2)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                if status is not None:
                    _make_as(file.fileno(), status)
                file.write(content + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def _make_as(descriptor: int, status: os.stat_result) -> None:
    """A gateway that runs as another user is to be able to read the file as before."""
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, status.st_mode & 0o777)


@contextlib.contextmanager
def _locked(directory: Path) -> Generator[None]:
    """Two that change a file at once wait for each other: either's key would be lost."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
