"""A PEFT directory as the messages of an upload: what both clients share."""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chorale.errors import (
    ChoraleError,
    FailedPreconditionError,
    InternalError,
    UnavailableError,
)
from chorale.v1 import adapter_registry_pb2 as pb

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_ATTEMPTS = 8
_CHUNK_BYTES = 1 << 20

OnProgress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes that are there, and its size (0: not known)."""


@dataclass(frozen=True)
class UploadFiles:
    """The two files of a directory, and what is said of them before their bytes."""

    weights: Path
    header: pb.UploadHeader


class Sending:
    """The messages of one call. problem: what reading the file or `on_progress` raised: gRPC ends
    the call for it, and says only that something did."""

    def __init__(self, files: UploadFiles, on_progress: OnProgress | None) -> None:
        self._files = files
        self._on_progress = on_progress
        self.problem: Exception | None = None

    def messages(self, offset: int) -> Iterator[pb.UploadAdapterRequest]:
        """From byte `offset` of the weights on."""
        try:
            yield from self._messages(offset)
        except Exception as problem:
            self.problem = problem
            raise

    def _messages(self, offset: int) -> Iterator[pb.UploadAdapterRequest]:
        header = self._files.header
        yield pb.UploadAdapterRequest(begin=pb.UploadBegin(header=header, offset=offset))
        with self._files.weights.open("rb") as file:
            file.seek(offset)
            while data := file.read(_CHUNK_BYTES):
                yield pb.UploadAdapterRequest(data=data)
                offset += len(data)
                if self._on_progress is not None:
                    self._on_progress(WEIGHTS_NAME, offset, header.weights_bytes)


def read_directory(directory: Path) -> UploadFiles:
    """Reads the weights once, for their hash. Raises: OSError."""
    weights = directory / WEIGHTS_NAME
    for path in (directory / CONFIG_NAME, weights):
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
    config = (directory / CONFIG_NAME).read_bytes()
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").digest()
        size = file.tell()
    header = pb.UploadHeader(config=config, weights_bytes=size, weights_sha256=sha256)
    return UploadFiles(weights, header)


def pause_before_retry_s(error: ChoraleError, attempt: int) -> float | None:
    """How long to wait before asking where to go on; None when that cannot help."""
    moved = isinstance(error, FailedPreconditionError) and error.reason == "UPLOAD_OFFSET"
    # grpc.aio loses the status of a call that the server ends while it is being written to.
    lost = isinstance(error, InternalError) and error.reason == "UNTYPED"
    if attempt >= MAX_ATTEMPTS or not (moved or lost or isinstance(error, UnavailableError)):
        return None
    return max(error.retry_after_s or 0.0, min(0.1 * 2**attempt, 5.0))
