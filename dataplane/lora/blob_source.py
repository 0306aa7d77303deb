"""Uploaded adapters, from the control plane that keeps them: `blob:DIGEST`."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from chorale.bearer import bearer_metadata
from chorale.channel import CONTROL_PLANE_OPTIONS
from chorale.errors import (
    ChoraleError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from chorale.fleet_channel import open_fleet_channel
from chorale.fleet_tls import FleetTls, way_out
from chorale.fleet_tls_files import FleetTlsFiles
from chorale.status import from_rpc_error
from chorale.v1 import blob_pb2 as pb
from chorale.v1.blob_pb2_grpc import BlobServiceStub
from storage import pace
from storage.errors import (
    AdapterTooLargeError,
    SourceNotFoundError,
    SourceUnreadableError,
    excerpt,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.sources import ANYBODY, Access, Progress
from storage.sources.retry import Patience, TransientError, patiently


class BlobSource:
    """Reads over gRPC from the control plane at `address`, HOST:PORT, with the fleet token, over
    TLS by the files of `fleet_tls` (None: plaintext); a stream that breaks goes on where it broke.
    Belongs to one event loop; `aclose` when done."""

    def __init__(
        self,
        address: str,
        fleet_token: str,
        fleet_tls: FleetTlsFiles | None = None,
        *,
        limits: AdapterLimits = DEFAULT_LIMITS,
        patience: Patience | None = None,
    ) -> None:
        self._address = address
        self._metadata = bearer_metadata(fleet_token)
        self._fleet_tls = fleet_tls
        self._tls: FleetTls | None = None
        self._limits = limits
        self._patience = patience or Patience()
        self._channel: grpc.aio.Channel | None = None

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        """Raises: SourceError, AdapterTooLargeError."""
        await self._look_at_certificate()
        digest = uri.partition(":")[2]
        config = await self._file(
            digest, CONFIG_NAME, pb.BLOB_FILE_CONFIG, self._limits.max_config_bytes, access
        )
        weights = await self._file(
            digest, WEIGHTS_NAME, pb.BLOB_FILE_WEIGHTS, self._limits.max_weights_bytes, access
        )
        return AdapterFiles(bytes(config), weights, uri)

    async def aclose(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def _file(
        self, digest: str, name: str, file: pb.BlobFile, max_bytes: int, access: Access
    ) -> memoryview:
        data = bytearray()

        async def attempt() -> None:
            had = len(data)
            request = pb.FetchBlobRequest(digest=digest, file=file, offset=had)
            try:
                async with asyncio.timeout(self._patience.stall_s) as stall:
                    total = 0
                    async for answer in self._stub().FetchBlob(request, metadata=self._metadata):
                        stall.reschedule(asyncio.get_running_loop().time() + self._patience.stall_s)
                        total = total or answer.total_bytes
                        if max(total, len(data) + len(answer.data)) > max_bytes:
                            raise _too_large(digest, name, total, max_bytes)
                        data.extend(answer.data)
                        await pace.rest_in_task()
                        if access.on_progress is not None:
                            access.on_progress(Progress(name, len(data), total))
            except grpc.aio.AioRpcError as error:
                known = from_rpc_error(error)
                raise _translated(digest, known, progressed=len(data) > had) from None
            except TimeoutError:
                problem = f"nothing came for {self._patience.stall_s:g} s"
                raise TransientError(problem, progressed=len(data) > had) from None
            if len(data) < total:
                raise TransientError("the stream ended early", progressed=len(data) > had)

        await patiently(f"blob:{digest}", self._patience, attempt)
        return memoryview(data).toreadonly()

    async def _look_at_certificate(self) -> None:
        if self._fleet_tls is None:
            return
        if self._tls is not None:
            return await asyncio.to_thread(self._tls.files.look)
        try:
            made = await asyncio.to_thread(FleetTls, self._fleet_tls)
        except InvalidArgumentError as error:
            raise SourceUnreadableError(error.message) from error
        self._tls = self._tls or made

    def _stub(self) -> Any:
        if self._channel is None:  # made here: it belongs to the loop that runs now
            self._channel = open_fleet_channel(self._address, CONTROL_PLANE_OPTIONS, self._tls)
        return BlobServiceStub(self._channel)


def _translated(digest: str, error: ChoraleError, *, progressed: bool) -> Exception:
    if isinstance(error, UnavailableError) or error.reason == "UNTYPED":
        problem = f"{error.reason}: {error.message[:200]}{way_out(error.message)}"
        return TransientError(problem, progressed=progressed, retry_after_s=error.retry_after_s)
    if isinstance(error, NotFoundError):
        return SourceNotFoundError(error.message, metadata=error.metadata)
    return SourceUnreadableError(
        f"source blob:{excerpt(digest, 80)[1:-1]}: the control plane answers {error.reason}: "
        f"{error.message[:200]}",
        metadata=error.metadata,
    )


def _too_large(digest: str, name: str, size: int, limit: int) -> AdapterTooLargeError:
    return AdapterTooLargeError(
        f"blob {digest}: {name} has {size} bytes; the limit is {limit}",
        metadata={"size_bytes": str(size), "limit_bytes": str(limit)},
    )
