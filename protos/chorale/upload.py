"""A PEFT directory as the messages of an upload: what both clients share."""

from __future__ import annotations

import hashlib
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

    def messages(
        self, offset: int, on_progress: OnProgress | None
    ) -> Iterator[pb.UploadAdapterRequest]:
        """The stream from byte `offset` of the weights on."""
        yield pb.UploadAdapterRequest(begin=pb.UploadBegin(header=self.header, offset=offset))
        total = self.header.weights_bytes
        with self.weights.open("rb") as file:
            file.seek(offset)
            while data := file.read(_CHUNK_BYTES):
                yield pb.UploadAdapterRequest(data=data)
                offset += len(data)
                if on_progress is not None:
                    on_progress(WEIGHTS_NAME, offset, total)


def read_directory(directory: Path) -> UploadFiles:
    """Reads the weights once, for their hash. Raises: OSError."""
    weights = directory / WEIGHTS_NAME
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
