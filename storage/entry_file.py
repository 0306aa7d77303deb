"""Reading one file of the disk tier: at the pace of background work, and nothing but what was
written there."""

from __future__ import annotations

import os
import stat

import numpy as np

from storage import pace

_PIECE_BYTES = 4 << 20


def read_entry_file(directory: int, name: str, limit: int) -> memoryview:
    """A regular file of the directory with this descriptor, of at most `limit` bytes; else nothing,
    which fails verification. Raises: OSError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=directory)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            return memoryview(b"")
        view, at = np.empty(status.st_size, np.uint8).data, 0
        while count := file.readinto(view[at : at + _PIECE_BYTES]):
            at += count
            pace.rest()
        return view[:at].toreadonly()
