"""Uploaded adapters by digest, and uploads that are under way.

Layout: root/blobs/<digest>/{adapter_config.json,adapter_model.safetensors}: whole, and appearing by
rename. root/uploads/<key>/: the same files as far as they have come, beside a reservation, a sparse
file of the size that they will have. root/done/<key>: the digest that an upload became.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator
from contextlib import asynccontextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

import aiofiles.threadpool

from storage.adapter.config import parse_config
from storage.adapter.manifest import digest_of, parse_adapter
from storage.errors import (
    AdapterFormatError,
    AdapterTooLargeError,
    BlobQuotaError,
    BlobWriteError,
    SourceNotFoundError,
    SourceUnreadableError,
    UploadBusyError,
    UploadDamagedError,
    UploadError,
    UploadOffsetError,
    excerpt,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.locks import opened_dir, try_lock
from storage.sources.access import ANYBODY, Access
from storage.upload import Upload, UploadHeader

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RESERVATION = "reservation"
_CHUNK_BYTES = 1 << 20
_UNUSED_S = 86_400.0
# Of an upload that nobody sends any more: its room is taken by what it announces, and a few of the
# longest that were given up at once would leave none to anybody for a day.
_GIVEN_UP_S = 900.0
# Of each blob and upload, for its directory and the last blocks of its files: the quota would bound
# no disk if thousands of a few bytes were nothing to it.
_ENTRY_BYTES = 16 << 10
_MAX_DONE = 4096


class BlobStore:
    """Bounded in bytes, uploads under way included. A Source for `blob:DIGEST`.

    Several processes may share `root`. What they write is validated before it appears. Blocking
    work is done in threads.
    """

    def __init__(self, root: Path, max_bytes: int, limits: AdapterLimits = DEFAULT_LIMITS) -> None:
        """Creates `root`. Raises: OSError."""
        self._root = root
        self._blobs, self._uploads, self._done = root / "blobs", root / "uploads", root / "done"
        self._max_bytes = max_bytes
        self._limits = limits
        for path in (self._blobs, self._uploads, self._done):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def offset(self, header: UploadHeader) -> int:
        """Bytes of the weights that need not be sent (again). Raises: AdapterFormatError,
        UploadError."""
        self._check(header)
        return await asyncio.to_thread(self._offset, header)

    @asynccontextmanager
    async def upload(self, header: UploadHeader, offset: int) -> AsyncGenerator[Upload]:
        """An upload that goes on at `offset`. What was written is kept for the next call unless it
        turns out to be damaged.

        Raises: AdapterFormatError; UploadError: UploadOffsetError, UploadBusyError, BlobQuotaError,
        BlobWriteError.
        """
        self._check(header)
        try:
            async with self._opened(header, offset) as upload:
                yield upload
        except OSError as error:
            raise BlobWriteError(
                f"the upload cannot be written: {error.strerror}; what has come is kept, so free "
                "room where the control plane keeps its blobs and send the rest",
                metadata={"upload": header.key},
            ) from error

    @asynccontextmanager
    async def _opened(self, header: UploadHeader, offset: int) -> AsyncGenerator[Upload]:
        digest = await asyncio.to_thread(self._finished, header)
        if digest is not None and offset == header.weights_bytes:
            if not await asyncio.to_thread(self._is_sound, digest):
                (self._done / header.key).unlink(missing_ok=True)
                raise _elsewhere(await asyncio.to_thread(self._offset, header), offset)
            await asyncio.to_thread(self._take_config, digest, header)
            yield Upload(header, None, None, digest)
            return
        with contextlib.ExitStack() as stack:
            directory = await asyncio.to_thread(self._begin, header, offset, stack)
            file = stack.enter_context((directory / WEIGHTS_NAME).open("ab"))
            if file.tell() != offset:
                raise _elsewhere(file.tell(), offset)
            yield Upload(header, file, lambda: self._finish(header, directory), None)

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        """Raises: SourceNotFoundError, SourceUnreadableError."""
        digest = uri.partition(":")[2]
        config = await self._whole(digest, CONFIG_NAME)
        return AdapterFiles(config, await self._whole(digest, WEIGHTS_NAME), f"blob:{digest}")

    async def stream(self, digest: str, name: str, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """The file's size and its bytes from `offset` on, in pieces.

        Raises: SourceNotFoundError, SourceUnreadableError.
        """
        file = await asyncio.to_thread(self._open, digest, name)
        with file:
            size = os.fstat(file.fileno()).st_size
            if offset > size:
                raise SourceUnreadableError(
                    f"offset {offset} lies beyond the {size} bytes of {name}",
                    metadata={"size_bytes": str(size)},
                )
            pieces = aiofiles.threadpool.wrap(file)
            await pieces.seek(offset)
            piece = await pieces.read(_CHUNK_BYTES)
            while True:
                yield size, piece
                piece = await pieces.read(_CHUNK_BYTES)
                if not piece:
                    return

    async def collect(self, named: Collection[str]) -> int:
        """Removes blobs that are not among the digests `named`, when nobody has touched them for a
        day, and uploads of which nothing has come for a quarter of an hour. Returns how many."""
        return await asyncio.to_thread(self._collect, frozenset(named))

    def _check(self, header: UploadHeader) -> None:
        """Before a byte is taken."""
        limit = self._limits.max_weights_bytes
        if header.weights_bytes > limit:
            raise AdapterTooLargeError(
                f"weights_bytes is {header.weights_bytes}; the limit is {limit}",
                metadata={"size_bytes": str(header.weights_bytes), "limit_bytes": str(limit)},
            )
        if len(header.weights_sha256) != 32 or header.weights_bytes < 8:
            raise UploadError(
                f"weights_sha256 must have 32 bytes, not {len(header.weights_sha256)}, and "
                f"weights_bytes be at least 8, not {header.weights_bytes}",
                metadata={"field": "header"},
            )
        parse_config(header.config, limits=self._limits)

    def _finished(self, header: UploadHeader) -> str | None:
        """The digest of the blob that this upload became before, if it is still there."""
        with contextlib.suppress(OSError):
            digest = (self._done / header.key).read_text("ascii")
            if _DIGEST.fullmatch(digest) and (self._blobs / digest).is_dir():
                os.utime(self._blobs / digest)
                return digest
        return None

    def _offset(self, header: UploadHeader) -> int:
        if self._finished(header) is not None:
            return header.weights_bytes
        try:
            return (self._uploads / header.key / WEIGHTS_NAME).stat().st_size
        except OSError:
            return 0

    def _begin(self, header: UploadHeader, offset: int, stack: contextlib.ExitStack) -> Path:
        """The upload's directory, which is ours until `stack` closes."""
        directory = self._uploads / header.key
        busy = UploadBusyError(
            "another call is writing this upload: wait for it, or for its end",
            metadata={"upload": header.key},
        )
        with self._locked():
            if not directory.is_dir():
                if self._finished(header) is not None:  # since this call began
                    raise _elsewhere(header.weights_bytes, offset)
                self._check_quota(header.size_bytes)
                directory.mkdir(mode=0o700)
            try:
                fd = stack.enter_context(opened_dir(directory))
                if not try_lock(fd, fcntl.LOCK_EX):
                    raise busy
                os.utime(directory)
                with (directory / _RESERVATION).open("wb") as file:
                    file.truncate(header.size_bytes)
                (directory / CONFIG_NAME).write_bytes(header.config)
            except FileNotFoundError:  # that other call has just finished
                raise busy from None
        return directory

    def _check_quota(self, needed: int) -> None:
        used = sum(_size_of(path) for path in self._blobs.iterdir())
        used += sum(_size_of(path) for path in self._uploads.iterdir())
        if used + needed + _ENTRY_BYTES > self._max_bytes:
            raise BlobQuotaError(
                f"the upload has {needed} bytes, and {used} of the {self._max_bytes} for blobs are "
                "taken: remove adapters that nobody needs, or raise --max-blob-bytes",
                metadata={"used_bytes": str(used), "max_bytes": str(self._max_bytes)},
            )

    def _finish(self, header: UploadHeader, directory: Path) -> str:
        try:
            digest = self._validated(header, directory)
        except Exception:
            shutil.rmtree(directory, ignore_errors=True)  # more of the same would not help
            raise
        _sync(directory / CONFIG_NAME)
        final = self._blobs / digest
        is_damaged = final.is_dir() and not self._is_sound(digest)
        with self._locked():  # who adds up what is taken must find it in one of the two places
            (directory / _RESERVATION).unlink()
            self._remember(header, digest)  # who finds the directory gone knows what became of it
            is_new = not final.is_dir()
            if is_new:
                directory.rename(final)
            elif is_damaged:
                for name in (WEIGHTS_NAME, CONFIG_NAME):
                    (directory / name).replace(final / name)
        if not is_new:
            self._take_config(digest, header)
            shutil.rmtree(directory, ignore_errors=True)
        os.utime(final)
        _sync(final)
        _sync(self._blobs)
        return digest

    def _is_sound(self, digest: str) -> bool:
        """Whether the blob still is what its name says. Reads all of it."""
        entry = self._blobs / digest
        try:
            config = (entry / CONFIG_NAME).read_bytes()
            with (entry / WEIGHTS_NAME).open("rb") as file:
                weights = mmap(file.fileno(), 0, access=ACCESS_READ)
            return digest_of(config, weights, limits=self._limits) == digest
        except (OSError, ValueError, AdapterFormatError):  # ValueError: an empty file
            return False

    def _take_config(self, digest: str, header: UploadHeader) -> None:
        """The latest configuration is kept. It means the same, but says things that are no part of
        the digest: who corrects base_model_name_or_path uploads the same digest again."""
        config = self._blobs / digest / CONFIG_NAME
        with self._locked(), contextlib.suppress(FileNotFoundError):  # it was just collected
            if config.read_bytes() == header.config:
                return
            new = config.with_name(f".{CONFIG_NAME}")
            new.write_bytes(header.config)
            _sync(new)
            new.rename(config)
            _sync(config.parent)

    def _validated(self, header: UploadHeader, directory: Path) -> str:
        path = directory / WEIGHTS_NAME
        with path.open("rb") as file:
            os.fsync(file.fileno())
            found = hashlib.file_digest(file, "sha256").digest()
            if found != header.weights_sha256:
                raise UploadDamagedError(
                    f"the weights arrived with SHA-256 {found.hex()}, the header says "
                    f"{header.weights_sha256.hex()}: upload them afresh",
                    metadata={"expected": header.weights_sha256.hex(), "found": found.hex()},
                )
            # Not closed by hand: an error's traceback may still hold views into it.
            weights = mmap(file.fileno(), 0, access=ACCESS_READ)
            return parse_adapter(header.config, weights, limits=self._limits).manifest.digest

    def _remember(self, header: UploadHeader, digest: str) -> None:
        new = self._done / f".{header.key}.{os.getpid()}"
        new.write_text(digest, "ascii")
        new.rename(self._done / header.key)
        # One for each spelling of a configuration, so they may be many more than the blobs.
        done: list[tuple[float, Path]] = []
        for path in self._done.iterdir():
            with contextlib.suppress(FileNotFoundError):  # whose blob was damaged goes at any time
                done.append((path.stat().st_mtime, path))
        for _, path in sorted(done)[:-_MAX_DONE]:
            path.unlink(missing_ok=True)

    async def _whole(self, digest: str, name: str) -> bytes:
        def read() -> bytes:
            with self._open(digest, name) as file:
                return file.read()

        return await asyncio.to_thread(read)

    def _open(self, digest: str, name: str) -> BinaryIO:
        if not _DIGEST.fullmatch(digest):
            raise SourceUnreadableError(
                f"source blob:{excerpt(digest, 80)[1:-1]} is not blob: and 64 hex digits"
            )
        entry = self._blobs / digest
        try:
            file = (entry / name).open("rb")
            os.utime(entry)  # in use: not to be collected
            return file
        except FileNotFoundError:
            raise SourceNotFoundError(
                f"there is no blob {digest} here: upload it, with `chorale adapters add NAME DIR "
                "--upload`",
                metadata={"digest": digest},
            ) from None
        except OSError as error:
            raise SourceUnreadableError(f"blob {digest}: {error.strerror}") from None

    def _collect(self, named: frozenset[str]) -> int:
        now = time.time()
        removed = 0
        with self._locked():
            kept_s = dict.fromkeys(self._blobs.iterdir(), _UNUSED_S)
            kept_s |= dict.fromkeys(self._uploads.iterdir(), _GIVEN_UP_S)
            for path, unused_s in kept_s.items():
                with contextlib.suppress(OSError), opened_dir(path) as fd:
                    if path.name in named or _last_use(path, fd) > now - unused_s:
                        continue
                    if try_lock(fd, fcntl.LOCK_EX):
                        shutil.rmtree(path)
                        removed += 1
            for path in self._done.iterdir():
                with contextlib.suppress(OSError):
                    if not (self._blobs / path.read_text("ascii")).is_dir():
                        path.unlink()
        return removed

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        fd = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _elsewhere(there: int, offset: int) -> UploadOffsetError:
    return UploadOffsetError(
        f"the upload goes on at byte {there}, not {offset}: ask GetUpload first",
        metadata={"offset": str(there)},
    )


def _size_of(path: Path) -> int:
    """Of a blob: its files. Of an upload: what was reserved. Of both: their place."""
    try:
        with os.scandir(path) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
    except OSError:
        return 0  # it is being removed
    return _ENTRY_BYTES + (sizes.get(_RESERVATION) or sum(sizes.values()))


def _last_use(path: Path, fd: int) -> float:
    """fd: of the directory `path`, which is touched when it is used; its weights when they come."""
    with contextlib.suppress(FileNotFoundError):
        return max(os.fstat(fd).st_mtime, (path / WEIGHTS_NAME).stat().st_mtime)
    return os.fstat(fd).st_mtime


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
