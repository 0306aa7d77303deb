"""What is uploaded, and one upload under way."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import aiofiles.threadpool

from storage.errors import UploadError, UploadOffsetError


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """What is to be uploaded. weights_sha256: of the whole file, 32 bytes."""

    config: bytes
    weights_bytes: int
    weights_sha256: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.config) + self.weights_bytes

    @property
    def key(self) -> str:
        """The same for the same content: that is how an upload is found again."""
        config = hashlib.sha256(self.config).digest()
        size = self.weights_bytes.to_bytes(8, "little")
        return hashlib.sha256(config + size + self.weights_sha256).hexdigest()


class Upload:
    """One upload under way: `write` what comes, then `finish`."""

    def __init__(
        self,
        header: UploadHeader,
        file: BinaryIO | None,
        complete: Callable[[], str] | None,
        digest: str | None,
    ) -> None:
        """file, complete: None where `digest` is known, as nothing is left to be done."""
        self._header = header
        self._file = file
        self._complete = complete
        self._digest = digest

    @property
    def received_bytes(self) -> int:
        return self._header.weights_bytes if self._file is None else self._file.tell()

    async def write(self, data: bytes) -> None:
        """Raises: UploadError when it is more than was announced."""
        left = self._header.weights_bytes - self.received_bytes
        if len(data) > left:
            raise UploadError(
                f"{len(data)} bytes came where {left} are left of the "
                f"{self._header.weights_bytes} that were announced",
                metadata={"field": "data"},
            )
        if self._file is not None:
            await aiofiles.threadpool.wrap(self._file).write(data)

    async def finish(self) -> str:
        """The digest of the blob, which is there now.

        Raises: UploadOffsetError when bytes are missing; UploadDamagedError, AdapterFormatError:
        then nothing of the upload is kept.
        """
        if self._digest is not None:
            return self._digest
        assert self._file is not None and self._complete is not None
        await aiofiles.threadpool.wrap(self._file).flush()
        received = self.received_bytes
        if received != self._header.weights_bytes:
            raise UploadOffsetError(
                f"the upload ended at byte {received} of {self._header.weights_bytes}: send the "
                "rest",
                metadata={"offset": str(received)},
            )
        self._digest = await asyncio.to_thread(self._complete)
        return self._digest
