"""One process at a time on a data dir."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, cast

from controlplane.errors import DataDirLockedError


class DataDirLock:
    """An flock on DIRECTORY/lock: the kernel drops it when its holders are gone, however they end.

    A child that inherits `fd` holds it too. The file tells who holds it and, for whoever comes
    next, what a killed holder may have left behind (`left`).
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd: int | None = None
        self.left: dict[str, Any] = {}

    @property
    def fd(self) -> int:
        assert self._fd is not None
        return self._fd

    def acquire(self, wait_s: float) -> None:
        """Takes the lock; waits up to `wait_s` for a holder that is on its way out.

        Raises: DataDirLockedError naming the holder's pid; OSError.
        """
        path = self._directory / "lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._lock(fd, wait_s)
            self.left = _read(fd)
            self._fd = fd
            self.describe({})
        except BaseException:
            self._fd = None
            os.close(fd)
            raise

    def describe(self, facts: dict[str, str]) -> None:
        """Writes this process's pid and `facts` into the file."""
        text = json.dumps({"pid": os.getpid(), **facts}).encode()
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text, 0)

    def release(self) -> None:
        if self._fd is not None:
            # No unlink: another process may have opened the file and wait for this very lock.
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def _lock(self, fd: int, wait_s: float) -> None:
        end = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            holder = _read(fd).get("pid")
            holder = holder if isinstance(holder, int) and holder > 0 else None
            if time.monotonic() >= end or (holder is not None and _is_alive(holder)):
                raise DataDirLockedError(str(self._directory.parent), holder)
            time.sleep(0.02)


def _read(fd: int) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        facts: object = json.loads(os.pread(fd, 4096, 0))
        if isinstance(facts, dict):
            return cast("dict[str, Any]", facts)
    return {}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
