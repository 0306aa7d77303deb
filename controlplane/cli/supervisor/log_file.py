"""A child's log file, bounded in size."""

from __future__ import annotations

from pathlib import Path


class BoundedLog:
    """Appends to `path`; past `max_bytes` the file moves to `path`.1 and a new one begins."""

    def __init__(self, path: Path, *, max_bytes: int = 16 << 20) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        if self._file.tell() + len(data) > self._max_bytes:
            self._file.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self._file = self.path.open("ab", buffering=0)
        self._file.write(data)

    def close(self) -> None:
        self._file.close()
