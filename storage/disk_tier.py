"""Adapters on disk by digest, so that a restart or a second process need not fetch them again.

Layout: root/<digest>/{adapter_config.json,adapter_model.safetensors}. An entry appears by rename,
whole or not at all, and leaves by rename. The file system is the only state: each entry directory's
mtime says when it was last used, and what several processes do to one root is seen by all.

Locks are the kernel's (flock), so that they end with their process, however it ends:
- root/.lock, for the moment in which room is made and reserved: the bound holds for all processes;
- an entry's directory, shared while it is read: it is not evicted under a reader;
- a temporary directory, while its writer lives;
- root/.claims/<digest>, while one process fetches what the others would fetch too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from storage.adapter.manifest import digest_of
from storage.durable import sync_dir, write_durably
from storage.entry_file import read_entry_file
from storage.errors import AdapterFormatError, TierFullError, TierWriteError
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.locks import Claim, claim, opened_dir, try_lock

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMP_PREFIX = ".tmp-"
_LOCK = ".lock"
_CLAIMS = ".claims"
_RESERVATION = "reservation"

T = TypeVar("T")


@dataclass(frozen=True)
class _Failed:
    error: Exception


@dataclass(frozen=True, slots=True)
class DiskTierStats:
    """Counters of this process; `entry_bytes` and `num_entries` as of its last look at the root."""

    entry_bytes: int
    num_entries: int
    num_hits: int
    num_misses: int
    num_evictions: int
    num_damaged: int


class DiskTier:
    """Bounded in bytes, least recently used out first. Use from one event loop.

    Any number of processes may share `root`: each keeps the whole root within its own
    `max_bytes` when it writes.
    """

    def __init__(
        self, root: Path, max_bytes: int, *, limits: AdapterLimits = DEFAULT_LIMITS
    ) -> None:
        """Creates `root`, clears what crashed writers left, applies the bound. Blocking, brief.

        Raises: TierWriteError when the root cannot be made or read.
        """
        self._root = root
        self._max_bytes = max_bytes
        self._limits = limits
        self._sizes: dict[str, int] = {}
        self._hits = self._misses = self._evictions = self._damaged = 0
        self._last_use_ns = 0
        # The thread lock is what keeps order (a cancelled caller leaves its thread running);
        # the async one only saves other writers from occupying threads while they wait.
        self._write_lock = threading.Lock()
        self._write_turn = asyncio.Lock()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            (root / _CLAIMS).mkdir(mode=0o700, exist_ok=True)
            with self._root_lock():
                self._remove_leftovers()
                self._make_room(0)
        except OSError as problem:
            raise _write_error(root, problem) from None

    async def get(self, digest: str, *, again: bool = False) -> AdapterFiles | None:
        """The files, proven to have `digest`; None if absent. A damaged entry is dropped.

        again: the second look of one reader, whose first one has counted the miss."""
        return await self.get_and(_as_they_are, digest, again=again)

    async def get_and(
        self,
        use: Callable[[AdapterFiles], Awaitable[T]],
        digest: str,
        *,
        again: bool = False,
    ) -> T | None:
        """As `get`, but for what `use` makes of the files. It runs while they are still proven:
        what it made, or raised, counts only if they are sound."""
        files = await asyncio.to_thread(self._read, _checked(digest))
        if files is not None:
            proof = asyncio.create_task(asyncio.to_thread(self._prove, digest, files))
            try:
                made = await _outcome(use(files))
                is_sound = await proof
            except BaseException:
                proof.cancel()
                raise
            if is_sound:
                self._hits += 1
                if isinstance(made, _Failed):
                    raise made.error
                return made
        if not again:
            self._misses += 1
        return None

    async def put(self, digest: str, files: AdapterFiles) -> None:
        """Store `files`, whose digest the caller has computed. Durable when it returns.

        Raises: TierFullError when they exceed the whole tier; TierWriteError.
        """
        _checked(digest)
        if files.size_bytes > self._max_bytes:
            raise TierFullError(
                f"adapter needs {files.size_bytes} bytes of disk cache, which holds "
                f"{self._max_bytes}; raise --disk-cache-bytes",
                metadata={
                    "size_bytes": str(files.size_bytes),
                    "max_bytes": str(self._max_bytes),
                },
            )
        async with self._write_turn:
            try:
                await asyncio.to_thread(self._put, digest, files)
            except OSError as problem:
                raise _write_error(self._root, problem) from None

    async def claim(self, digest: str, *, max_wait_s: float) -> Claim:
        """The right to fetch `digest` for all processes that share this root.

        While another process holds it, waits: it may be about to put the digest here, so look
        again with `get`. After `max_wait_s` the claim is returned without the right, for a holder
        that hangs must not hold up others. Release it in any case.
        """
        return await claim(self._root / _CLAIMS / _checked(digest), max_wait_s=max_wait_s)

    def __contains__(self, digest: str) -> bool:
        """As of this process's last look; no I/O."""
        return digest in self._sizes

    def digests(self) -> frozenset[str]:
        """What was there when this process last looked; no I/O."""
        return frozenset(self._sizes)

    def stats(self) -> DiskTierStats:
        sizes = list(self._sizes.values())
        return DiskTierStats(
            entry_bytes=sum(sizes),
            num_entries=len(sizes),
            num_hits=self._hits,
            num_misses=self._misses,
            num_evictions=self._evictions,
            num_damaged=self._damaged,
        )

    def _read(self, digest: str) -> AdapterFiles | None:
        """What the entry holds, whether sound or not."""
        entry = self._root / digest
        damaged = False
        try:
            # Both files come from one directory, even if it is renamed away meanwhile.
            here = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if not try_lock(here, fcntl.LOCK_SH):
                    return None  # it is being evicted at this moment
                files = AdapterFiles(
                    config=bytes(read_entry_file(here, CONFIG_NAME, self._limits.max_config_bytes)),
                    weights=read_entry_file(here, WEIGHTS_NAME, self._limits.max_weights_bytes),
                    uri=entry.absolute().as_uri(),
                )
            except FileNotFoundError:
                damaged = os.path.samestat(os.fstat(here), os.stat(entry))
            else:
                self._sizes[digest] = files.size_bytes  # while nobody can evict it
                self._touch(entry)
                return files
            finally:
                os.close(here)
        except FileNotFoundError:
            pass
        except OSError as problem:
            _log.warning("disk tier cannot read %s: %s", digest, problem)
            # It can be had again; only our own shortage says nothing about the entry.
            damaged = problem.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
        self._sizes.pop(digest, None)
        if damaged:
            self._drop_damaged(digest)
        return None

    def _prove(self, digest: str, files: AdapterFiles) -> bool:
        """Whether they are sound; a damaged entry is dropped."""
        sound = self._is_sound(digest, files)
        if not sound:
            self._drop_damaged(digest)
        return sound

    def _drop_damaged(self, digest: str) -> None:
        _log.warning("disk tier drops damaged entry %s", digest)
        self._damaged += 1
        self._drop(digest)

    def _is_sound(self, digest: str, files: AdapterFiles) -> bool:
        try:
            return digest_of(files.config, files.weights, limits=self._limits) == digest
        except AdapterFormatError:
            return False

    def _put(self, digest: str, files: AdapterFiles) -> None:
        with self._write_lock:
            final = self._root / digest
            if final.is_dir():
                self._touch(final)
                self._sizes[digest] = files.size_bytes
                return
            with self._reserved(files) as temp:
                write_durably(temp / CONFIG_NAME, files.config)
                write_durably(temp / WEIGHTS_NAME, files.weights)
                (temp / _RESERVATION).unlink()
                sync_dir(temp)
                self._touch(temp)
                try:
                    temp.rename(final)
                except OSError:
                    if not final.is_dir():
                        raise
                    # Another process stored the same content first.
            sync_dir(self._root)
            self._sizes[digest] = files.size_bytes

    @contextlib.contextmanager
    def _reserved(self, files: AdapterFiles) -> Generator[Path]:
        """A temporary directory that counts with the size of `files` from the start.

        Raises: TierFullError when readers hold what would have to go; OSError.
        """
        with contextlib.ExitStack() as stack:
            with self._root_lock():
                self._remove_leftovers()
                if not self._make_room(files.size_bytes):
                    raise TierFullError(
                        f"adapter needs {files.size_bytes} bytes of disk cache, and what is there "
                        "is being read or written at the moment; raise --disk-cache-bytes",
                        metadata={"size_bytes": str(files.size_bytes)},
                    )
                temp = stack.enter_context(self._temp_dir())
                reservation = os.open(temp / _RESERVATION, os.O_WRONLY | os.O_CREAT, 0o600)
                try:
                    os.ftruncate(reservation, files.size_bytes)
                finally:
                    os.close(reservation)
            yield temp

    @contextlib.contextmanager
    def _root_lock(self) -> Generator[None]:
        """Held for the length of a directory listing, never while file contents are written."""
        fd = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _temp_dir(self) -> Generator[Path]:
        """A directory that `_remove_leftovers` of any process spares while we live."""
        while True:
            temp = self._root / f"{_TEMP_PREFIX}{uuid.uuid4().hex}"
            temp.mkdir(mode=0o700)
            fd = os.open(temp, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if temp.exists():
                break
            os.close(fd)  # a starting process took it for a leftover before we had the lock
        try:
            yield temp
        finally:
            shutil.rmtree(temp, ignore_errors=True)
            os.close(fd)

    def _remove_leftovers(self) -> None:
        for path in self._root.glob(f"{_TEMP_PREFIX}*"):
            with contextlib.suppress(OSError), opened_dir(path) as fd:
                if try_lock(fd, fcntl.LOCK_EX):
                    shutil.rmtree(path, ignore_errors=True)

    def _make_room(self, needed: int) -> bool:
        """Look at the root and drop the longest unused until `needed` more bytes fit; entries that
        somebody reads stay. Whether they fit. The root lock is held."""
        found: list[tuple[int, str, int]] = []
        reserved = 0
        for entry in os.scandir(self._root):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if _DIGEST.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    # What has a digest never changes, nor does its size.
                    size = self._sizes.get(entry.name)
                    size = _entry_bytes(entry.path) if size is None else size
                    found.append((entry.stat().st_mtime_ns, entry.name, size))
                elif entry.name.startswith(_TEMP_PREFIX):
                    reserved += _reserved_bytes(entry.path)
        self._sizes = {name: size for _, name, size in found}
        total = sum(self._sizes.values()) + reserved
        for _, name, size in sorted(found):
            if total + needed <= self._max_bytes:
                break
            if self._evict(name):
                self._evictions += 1
                total -= size
        return total + needed <= self._max_bytes

    def _evict(self, digest: str) -> bool:
        """Unless somebody reads it."""
        try:
            with opened_dir(self._root / digest) as fd:
                if not try_lock(fd, fcntl.LOCK_EX):
                    return False
                self._drop(digest)
        except FileNotFoundError:
            self._sizes.pop(digest, None)
        except OSError:
            return False
        return True

    def _drop(self, digest: str) -> None:
        self._sizes.pop(digest, None)
        trash = self._root / f"{_TEMP_PREFIX}{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            # Renamed first, so that no reader sees half an entry.
            (self._root / digest).rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def _touch(self, entry: Path) -> None:
        self._last_use_ns = max(self._last_use_ns + 1, time.time_ns())
        with contextlib.suppress(OSError):
            os.utime(entry, ns=(self._last_use_ns, self._last_use_ns))


async def _as_they_are(files: AdapterFiles) -> AdapterFiles:
    return files


async def _outcome(work: Awaitable[T]) -> T | _Failed:
    try:
        return await work
    except Exception as error:
        return _Failed(error)


def _checked(digest: str) -> str:
    # It becomes a path: anything but a digest must never get there.
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"not a digest: {digest[:80]!r}")
    return digest


def _entry_bytes(path: str) -> int:
    return sum(file.stat(follow_symlinks=False).st_size for file in os.scandir(path))


def _reserved_bytes(path: str) -> int:
    """Of a directory being written: what was reserved. Of one being removed: what is left."""
    sizes = {file.name: file.stat(follow_symlinks=False).st_size for file in os.scandir(path)}
    return sizes.get(_RESERVATION) or sum(sizes.values())


def _write_error(root: Path, problem: OSError) -> TierWriteError:
    return TierWriteError(
        f"disk cache {root} cannot be written: {problem.strerror or type(problem).__name__}",
        metadata={"errno": str(problem.errno)},
    )
