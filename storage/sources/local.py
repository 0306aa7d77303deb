"""Adapters in directories of this machine, under roots that the operator has opened."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from storage.adapter.weights import extents_of, header_size
from storage.errors import (
    AdapterTooLargeError,
    OutsideRootsError,
    SourceNotFoundError,
    SourceTimeoutError,
    SourceUnreadableError,
    excerpt,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.sources.access import ANYBODY, Access, Progress
from storage.sources.pickles import PICKLE_NAME, pickle_only
from storage.sources.policy import without_secrets
from storage.sources.slots import origin_of
from storage.threads import LoneThreads

_MAX_PATH_CHARS = 4096
_CHUNK_BYTES = 8 << 20
_UNSEEN_BYTES = 64 << 20  # of weights that are read without a look at their header first
_PICKLES = (PICKLE_NAME, "adapter_model.pt", "adapter_model.pth")
# O_NONBLOCK: opening a FIFO must not wait for its writer. O_NOFOLLOW: the path was resolved, so a
# link found while opening was put there since.
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class _StoppedError(Exception):
    """Nobody waits for the read any more."""


class LocalDirectorySource:
    """Reads `/absolute/dir` or `file:///absolute/dir` when it lies under one of `roots`.

    Links are resolved first, for the directory and for each file (a hub cache is made of links),
    and what they lead to must lie under a root too. Each fetch has a thread of its own: a mount
    that hangs holds up nobody else. total_s: after so long a fetch fails.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        limits: AdapterLimits = DEFAULT_LIMITS,
        *,
        total_s: float = 600.0,
    ) -> None:
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)
        self._limits = limits
        self._total_s = total_s
        self._threads = LoneThreads()

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        """Raises: SourceError, AdapterTooLargeError, PickleRefusedError, BadWeightsError."""
        path = _local_path(uri)
        stopped = threading.Event()
        loop, on_progress = asyncio.get_running_loop(), access.on_progress

        def told(progress: Progress) -> None:
            if stopped.is_set():
                raise _StoppedError
            if on_progress is not None:
                loop.call_soon_threadsafe(on_progress, progress)

        try:
            async with asyncio.timeout(self._total_s):
                return await self._threads.run(
                    origin_of(uri), lambda: self._read_both(path, uri, told)
                )
        except TimeoutError:
            raise SourceTimeoutError(
                f"source {excerpt(path)} was not read within {self._total_s:g} s; it seems to "
                "hang: try again when it answers"
            ) from None
        finally:
            stopped.set()

    def _read_both(self, path: str, uri: str, told: Callable[[Progress], None]) -> AdapterFiles:
        directory = self._resolve_directory(path)
        config = self._read(directory, CONFIG_NAME, self._limits.max_config_bytes, told)
        weights = self._read(directory, WEIGHTS_NAME, self._limits.max_weights_bytes, told)
        return AdapterFiles(config=bytes(config), weights=weights, uri=uri)

    def _resolve_directory(self, path: str) -> Path:
        directory = self._inside(path)
        try:
            mode = os.stat(directory).st_mode
        except OSError as problem:
            raise _source_error(path, problem) from None
        if not stat.S_ISDIR(mode):
            raise SourceUnreadableError(
                f"source {excerpt(path)} is not a directory; name the directory that holds "
                f"{CONFIG_NAME}"
            )
        if not os.path.lexists(directory / WEIGHTS_NAME):
            for name in _PICKLES:
                if os.path.lexists(directory / name):
                    raise pickle_only(path, name)
        return directory

    def _inside(self, path: str) -> Path:
        """The resolved path. Existence outside the roots is not revealed."""
        try:
            resolved = Path(os.path.realpath(path))
        except (OSError, ValueError) as problem:
            raise SourceUnreadableError(
                f"source {excerpt(path)} cannot be resolved: {str(problem)[:100]}"
            ) from None
        if not any(resolved.is_relative_to(root) for root in self._roots):
            raise OutsideRootsError(
                f"source {excerpt(path)} lies outside the adapter roots; move it there, or start "
                "the server with --adapter-root naming a directory above it"
            )
        return resolved

    def _read(
        self, directory: Path, name: str, limit: int, told: Callable[[Progress], None]
    ) -> memoryview:
        """In the room that it takes and no more, as it may be most of what there is."""
        path = str(directory / name)
        try:
            with open(path, "rb", buffering=0, opener=self._open) as file:
                size = os.fstat(file.fileno()).st_size
                if size > limit:
                    raise AdapterTooLargeError(
                        f"source file {excerpt(path)} has {size} bytes; the limit is {limit}",
                        metadata={"size_bytes": str(size), "limit_bytes": str(limit)},
                    )
                if name == WEIGHTS_NAME and size > _UNSEEN_BYTES:
                    self._check_header(file, size)
                data = memoryview(bytearray(size))
                received = 0
                while count := file.readinto(data[received : received + _CHUNK_BYTES]):
                    received += count
                    told(Progress(name, received, size))
                has_more = bool(file.read(1))
        except OSError as problem:
            raise _source_error(path, problem) from None
        if received != size or has_more:
            raise SourceUnreadableError(f"source file {excerpt(path)} changed while it was read")
        return data.toreadonly()

    def _check_header(self, file: FileIO, size: int) -> None:
        """Before there is room for all of it: a sparse file claims any size and costs nothing.

        Raises: BadWeightsError, PickleRefusedError."""
        header_bytes = header_size(_exactly(file, 8), size, limits=self._limits)
        extents_of(_exactly(file, header_bytes), size, limits=self._limits)
        file.seek(0)

    def _open(self, path: str, _: int) -> int:
        """A descriptor of a regular file under a root."""
        resolved = self._inside(path)
        root = next(root for root in self._roots if resolved.is_relative_to(root))
        fd = _open_beneath(root, resolved.relative_to(root).parts)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SourceUnreadableError(f"source file {excerpt(path)} is not a regular file")
        return fd


def _exactly(file: FileIO, count: int) -> bytes:
    """`count` bytes, or fewer where the file ends."""
    pieces: list[bytes] = []
    while count > 0 and (piece := file.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _open_beneath(root: Path, parts: Sequence[str]) -> int:
    """Open step by step from `root`, so that no directory on the way can be swapped for a link."""
    here = os.open(root, _OPEN_FLAGS | os.O_DIRECTORY)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            there = os.open(part, _OPEN_FLAGS | (0 if last else os.O_DIRECTORY), dir_fd=here)
            os.close(here)
            here = there
    except BaseException:
        os.close(here)
        raise
    return here


def _local_path(uri: str) -> str:
    if len(uri) > _MAX_PATH_CHARS:
        raise SourceUnreadableError(
            f"source {excerpt(uri)} has {len(uri)} characters; the limit is {_MAX_PATH_CHARS}"
        )
    path = uri
    if uri[:7].lower() == "file://":
        try:
            parts = urlsplit(uri)
            path = unquote_to_bytes(parts.path).decode("utf-8")
        except ValueError:
            raise SourceUnreadableError(f"source {excerpt(uri)} is not a valid file URI") from None
        if parts.netloc.lower() not in ("", "localhost"):
            raise SourceUnreadableError(
                f"source {excerpt(without_secrets(uri))} names a host; only files of this machine "
                "are read: file:///absolute/dir"
            )
        if parts.query or parts.fragment:
            raise SourceUnreadableError(
                f"source {excerpt(without_secrets(uri))} has a query or fragment; write ? and # as "
                "%3F and %23"
            )
    if "\x00" in path:
        raise SourceUnreadableError(f"source {excerpt(uri)} contains a NUL character")
    if not os.path.isabs(path):
        raise SourceUnreadableError(
            f"source {excerpt(without_secrets(uri))} is a relative path; give an absolute one, or "
            "hf://ORG/NAME for a repository on a hub"
        )
    return path


def _source_error(path: str, problem: OSError) -> SourceNotFoundError | SourceUnreadableError:
    if problem.errno in (errno.ENOENT, errno.ENOTDIR):
        return SourceNotFoundError(
            f"source {excerpt(path)} does not exist; an adapter is a directory with "
            f"{CONFIG_NAME} and {WEIGHTS_NAME}"
        )
    text = os.strerror(problem.errno) if problem.errno else type(problem).__name__
    return SourceUnreadableError(f"source {excerpt(path)} cannot be read: {text}")
