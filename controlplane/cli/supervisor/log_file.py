"""A child's log file, bounded in size."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


class BoundedLog:
    """Appends to `path`; past `max_bytes` the file moves to `path`.1 and a new one begins."""

    def __init__(self, path: Path, *, max_bytes: int = 16 << 20) -> None:
        """Raises: OSError."""
        self.path = path
        self._max_bytes = max_bytes
        self._file = path.open("ab", buffering=0)
        self._num_lost = 0
        self._why = ""

    def write(self, data: bytes) -> None:
        """Never raises: nobody may stop reading a child's output because a disk is full. What
        cannot be written is left out, and counted in a line once the file can be written again."""
        if self._num_lost:
            data = f"\n({self._num_lost} lines are missing: {self._why})\n".encode() + data
        try:
            if self._file.tell() + len(data) > self._max_bytes:
                self._begin_anew()
            if self._file.write(data) < len(data):  # the disk is full from here on
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._num_lost = 0
        except OSError as error:
            self._num_lost += 1
            self._why = error.strerror or str(error)

    def close(self) -> None:
        self._file.close()

    def _begin_anew(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # moved before, and then no new one was made
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        old, self._file = self._file, self.path.open("ab", buffering=0)
        old.close()
