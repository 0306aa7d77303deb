"""Writing files that outlive a crash, past the page cache.

What the disk tier writes is not read soon, as host memory has it. In the page cache every page of
it would be memory taken anew: kernel work on the cores that others compute with, and it would push
out what is read.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

from storage import pace

_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 4096  # what direct writes, their place and their memory are multiples of
_DIRECT: int = getattr(os, "O_DIRECT", 0)  # Linux


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Makes the file, and returns when the disk has its content; the directory is the caller's to
    sync. Raises: OSError, FileExistsError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(path, flags, 0o666)
    try:
        view = memoryview(data)
        whole = len(view) // _BLOCK_BYTES * _BLOCK_BYTES
        written = 0
        if len(view) >= _PIECE_BYTES and _set_direct(fd, True):
            written = _write_direct(fd, view[:whole])
            _set_direct(fd, False)
        while written < len(view):
            written += os.write(fd, view[written : written + _PIECE_BYTES])
            pace.rest()
        os.fsync(fd)
    finally:
        os.close(fd)


def _set_direct(fd: int, on: bool) -> bool:
    """Whether it could be done."""
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)
    except OSError:  # this file system has no such thing
        return False
    return True


def _write_direct(fd: int, view: memoryview) -> int:
    """How many bytes were written: fewer than all where the file system takes no more this way."""
    written = 0
    piece = memoryview(mmap.mmap(-1, _PIECE_BYTES))  # aligned, as direct writes need it
    while written < len(view):
        size = min(_PIECE_BYTES, len(view) - written)
        piece[:size] = view[written : written + size]
        try:
            count = os.write(fd, piece[:size])
        except OSError as problem:
            if problem.errno == errno.EINVAL:
                return written
            raise
        written += count
        pace.rest()
        if count % _BLOCK_BYTES:
            return written
    return written


def sync_dir(path: Path) -> None:
    """Makes the names in it durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
