"""Uploads of adapters into the blobs that this control plane keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator

from controlplane.errors import ConflictError
from controlplane.registry.registry import AdapterRegistry
from storage.blobs import BlobStore
from storage.errors import BlobQuotaError
from storage.upload import UploadHeader


class Uploads:
    """blobs: None where uploads are turned off. registry: says which blobs are in use."""

    def __init__(self, blobs: BlobStore | None, registry: AdapterRegistry) -> None:
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
            async for piece in data:
                await upload.write(piece)
            return await upload.finish()

    def _store(self) -> BlobStore:
        if self._blobs is None:
            raise ConflictError(
                "UPLOADS_OFF",
                "this control plane keeps no uploads: start it with --blob-dir, or register the "
                "adapter from a source that it can read",
            )
        return self._blobs
