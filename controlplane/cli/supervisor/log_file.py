"""A child's log file, bounded in size."""

from __future__ import annotations

from pathlib import Path


class BoundedLog:
    """Appends to `path`; past `max_bytes` the file moves to `path`.1 and a new one begins."""

    def __init__(self, path: Path, *, max_bytes: int = 16 << 20) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file = path.open("ab", buffering=0)
        self._num_lost = 0

    def write(self, line: bytes) -> None:
        """A line that the disk does not take is lost, and counted in the next one that it takes:
        nobody is to wait, or to end, for the sake of a log."""
        lost = b"(%d lines before this one could not be written)\n" % self._num_lost
        try:
            self._append(lost + line if self._num_lost else line)
        except OSError:
            self._num_lost += 1
        else:
            self._num_lost = 0

    def close(self) -> None:
        self._file.close()

    def _append(self, data: bytes) -> None:
        if self._file.tell() + len(data) > self._max_bytes:
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            full, self._file = self._file, self.path.open("ab", buffering=0)
            full.close()
        self._file.write(data)
