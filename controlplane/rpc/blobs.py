"""BlobService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from chorale.bearer import check_bearer
from chorale.v1 import blob_pb2 as pb
from chorale.v1.blob_pb2_grpc import BlobServiceServicer
from controlplane.registry.uploads import Uploads
from controlplane.rpc import translate

Context = grpc.aio.ServicerContext[Any, Any]


class BlobHandlers(BlobServiceServicer):
    """token: the fleet token, which data planes show."""

    def __init__(self, uploads: Uploads, *, token: str) -> None:
        self._uploads = uploads
        self._token = token

    async def FetchBlob(
        self, request: pb.FetchBlobRequest, context: Context
    ) -> AsyncIterator[pb.FetchBlobResponse]:
        check_bearer(context.invocation_metadata(), self._token)
        name = translate.blob_file_from_pb(request.file)
        first = True
        async for size, data in self._uploads.read(request.digest, name, request.offset):
            yield pb.FetchBlobResponse(data=data, total_bytes=size if first else 0)
            first = False
