"""The data dir of `chorale up`, and the lock that gives it to one `up` at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Generator
from pathlib import Path
from types import TracebackType

from controlplane.cli.errors import UsageError
from controlplane.errors import DataDirLockedError

FLEET_TOKEN_NAME = "fleet-token"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # told of a write, without the file's name


def default_data_dir() -> Path:
    """$XDG_STATE_HOME/chorale, or ~/.local/state/chorale."""
    state = os.environ.get("XDG_STATE_HOME", "")
    root = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return root / "chorale"


class DataDir:
    """A data dir held by this process, from entry to exit.

    The lock is the kernel's (flock) and ends with the process, however that dies.
    Raises on entry: UsageError (DATA_DIR_UNUSABLE) when the directory cannot be made or written,
    DataDirLockedError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock_fd = -1

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def disk_cache(self) -> Path:
        return self.path / "disk-cache"

    @property
    def fleet_token(self) -> Path:
        """Where the fleet token is, for this user alone, while `up` runs."""
        return self.path / FLEET_TOKEN_NAME

    def __enter__(self) -> DataDir:
        try:
            self._lock()
        except OSError as error:
            self._close()
            raise self._unusable(error) from error
        except DataDirLockedError:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.fleet_token.unlink(missing_ok=True)
        os.ftruncate(self._lock_fd, 0)
        self._close()

    @contextlib.contextmanager
    def usable(self) -> Generator[None]:
        """What fails inside because of this directory is a UsageError, as on entry."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL or self._holds(error.filename):
                raise self._unusable(error) from error
            raise

    def _lock(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.logs.mkdir(mode=0o700, exist_ok=True)
        self._lock_fd = os.open(self.path / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.pread(self._lock_fd, 32, 0))
            raise DataDirLockedError(str(self.path), holder) from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, b"%d\n" % os.getpid(), 0)

    def _holds(self, name: object) -> bool:
        return isinstance(name, str) and Path(name).is_relative_to(self.path)

    def _unusable(self, error: OSError) -> UsageError:
        return UsageError(
            "DATA_DIR_UNUSABLE",
            f"--data-dir {error.filename or self.path}: {error.strerror}; give a directory that "
            "can be written and has room",
            metadata={"data_dir": str(self.path)},
        )

    def _close(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _holder(content: bytes) -> int | None:
    pid = content.strip()
    return int(pid) if pid.isdigit() else None
