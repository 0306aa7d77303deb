"""Uploads of adapters into the blobs that this control plane keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from controlplane.errors import ConflictError
from controlplane.registry.registry import AdapterRegistry
from storage.blobs import BlobStore
from storage.errors import BlobQuotaError, UploadOffsetError
from storage.upload import Upload, UploadHeader


class Uploads:
    """blobs: None where uploads are turned off. registry: says which blobs are in use.
    silence_s: how long an upload's next bytes are waited for."""

    def __init__(
        self, blobs: BlobStore | None, registry: AdapterRegistry, *, silence_s: float = 60.0
    ) -> None:
        self._silence_s = silence_s
        self._blobs = blobs
        self._registry = registry

    async def offset(self, header: UploadHeader) -> int:
        """Where an upload goes on. Raises: ConflictError, UploadError, AdapterFormatError."""
        return await self._store().offset(header)

    async def take(self, header: UploadHeader, offset: int, data: AsyncIterator[bytes]) -> str:
        """Writes `data` from `offset` on; returns the digest once all is there.

        Raises: ConflictError (UPLOADS_OFF), UploadError, AdapterFormatError, StoreUnavailableError.
        """
        blobs = self._store()
        try:
            return await self._write(blobs, header, offset, data)
        except BlobQuotaError:  # raised before any of `data` was taken
            if not await blobs.collect(await self._registry.blob_digests()):
                raise
        return await self._write(blobs, header, offset, data)

    async def read(self, digest: str, name: str, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """A file's size and its bytes from `offset` on. Raises: ConflictError, SourceError."""
        async for piece in self._store().stream(digest, name, offset):
            yield piece

    async def _write(
        self, blobs: BlobStore, header: UploadHeader, offset: int, data: AsyncIterator[bytes]
    ) -> str:
        async with blobs.upload(header, offset) as upload:
            while (piece := await self._next(data, upload)) is not None:
                await upload.write(piece)
            return await upload.finish()

    async def _next(self, data: AsyncIterator[bytes], upload: Upload) -> bytes | None:
        """An upload that is open keeps its room, so a caller who says nothing may not keep it open.

        Raises: UploadOffsetError."""
        try:
            async with asyncio.timeout(self._silence_s):
                return await anext(data, None)
        except TimeoutError:
            raise UploadOffsetError(
                f"nothing of the upload came for {self._silence_s:g} s after byte "
                f"{upload.received_bytes}: ask GetUpload, and send the rest",
                metadata={"offset": str(upload.received_bytes)},
            ) from None

    def _store(self) -> BlobStore:
        if self._blobs is None:
            raise ConflictError(
                "UPLOADS_OFF",
                "this control plane keeps no uploads: start it with --blob-dir, or register the "
                "adapter from a source that it can read",
            )
        return self._blobs
