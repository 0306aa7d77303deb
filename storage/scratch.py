"""Private scratch directories that do not outlive their process for long."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

_OWNER = "owner"


class ScratchDir:
    """A new directory of mode 0700 for files and sockets, none of them a directory.

    It holds the file `owner`: our pid for people, and a lock that the kernel drops when this
    process ends, however it ends. By that lock `sweep` tells what is left over from what is in use.

    prefix: of the directory's name. parent: where; left out, the system's temporary directory.
    Raises: OSError when it cannot be made.
    """

    def __init__(self, prefix: str, parent: str | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        unlocked = self.path / f".{_OWNER}"
        self._fd = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.write(self._fd, b"%d\n" % os.getpid())
        unlocked.rename(self.path / _OWNER)  # it never appears without the lock

    def remove(self) -> None:
        """Removes it with all that is in it. Idempotent."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    _clear(directory, self.path)
                finally:
                    os.close(directory)
            os.close(self._fd)
            self._fd = -1


def sweep(prefix: str, parent: str | None = None) -> list[Path]:
    """Removes the ScratchDirs of this user in `parent` whose processes are gone; returns them.

    Never follows a link, and touches nothing that has another owner, is open to others, or lacks
    the file `owner`.
    """
    removed: list[Path] = []
    parent = parent or tempfile.gettempdir()
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        removed = [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(prefix) and sweep_one(Path(entry.path))
        ]
    return removed


def sweep_one(path: Path) -> bool:
    """Removes the ScratchDir at `path` if it is one of this user's that nobody holds any more."""
    with contextlib.ExitStack() as opened:
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            opened.callback(os.close, directory)
            facts = os.fstat(directory)
            if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
                return False
            owner = os.open(_OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
            opened.callback(os.close, owner)
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held while its process lives
        except OSError:
            return False
        _clear(directory, path)
        return not path.exists()


def _clear(directory: int, path: Path) -> None:
    """Empties and removes `path`, which is open as `directory`."""
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):  # a directory is not ours
            os.unlink(name, dir_fd=directory)
    with contextlib.suppress(OSError):
        path.rmdir()
