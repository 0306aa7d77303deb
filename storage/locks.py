"""Locks between processes of one machine: the kernel's (flock), which end with their holder."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

_POLL_S = (0.005, 0.1)  # first and longest


class Claim:
    """The right to do what several would do otherwise. `is_held`: whether it was got."""

    def __init__(self, path: Path, fd: int | None) -> None:
        self._path = path
        self._fd = fd

    @property
    def is_held(self) -> bool:
        return self._fd is not None

    def release(self) -> None:
        """Idempotent."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):  # before the lock goes: nobody waits on a dead file
                self._path.unlink()
            os.close(fd)


async def claim(path: Path, *, max_wait_s: float) -> Claim:
    """Waits while somebody else holds the claim of this name; after `max_wait_s` returns one that
    is not held, for a holder that hangs must not hold up others. Where no lock can be had at all (a
    full or read-only disk) that is at once. Release it in any case."""
    clock = asyncio.get_running_loop().time
    end, (pause_s, longest_s) = clock() + max_wait_s, _POLL_S
    while True:
        try:
            fd = try_claim(path)
        except OSError:
            return Claim(path, None)
        if fd is not None or clock() >= end:
            return Claim(path, fd)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, longest_s)


def try_claim(path: Path) -> int | None:
    """A descriptor that holds the lock on `path`; None while another process does, or when it has
    let go of it in this moment. Raises: OSError when no lock can be had."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    held = False
    try:
        if try_lock(fd, fcntl.LOCK_EX):
            with contextlib.suppress(FileNotFoundError):  # its last holder has removed the file
                held = os.path.samestat(os.fstat(fd), os.stat(path))
    finally:
        if not held:
            os.close(fd)
    return fd if held else None


@contextlib.contextmanager
def opened_dir(path: Path) -> Generator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
