"""Tokenize of the gateway: any data plane of the base model can answer it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc

from chorale.errors import ResourceExhaustedError, UnavailableError
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from controlplane.gateway.channels import ChannelCache
from controlplane.gateway.data_planes import DataPlanes, Place
from controlplane.gateway.gate import Gate
from controlplane.gateway.upstream import Metadata, deadline_exceeded, for_data_plane, typed

_MAX_ATTEMPTS = 3


class Tokenizing:
    """Asks data planes at random, as all of one base model cut alike. Nothing is admitted: it costs
    no device anything, and a fleet that is full can still tell tokens.

    gate: bounds what is under way.
    """

    def __init__(self, data_planes: DataPlanes, channels: ChannelCache, gate: Gate) -> None:
        self._data_planes = data_planes
        self._channels = channels
        self._gate = gate

    async def tokenize(
        self, request: pb.TokenizeRequest, *, timeout_s: float | None, metadata: Metadata = ()
    ) -> pb.TokenizeResponse:
        """metadata: as `forwarded` gives it. Raises: ChoraleError."""
        with self._gate.place():
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._anywhere(request, for_data_plane(metadata))
            except TimeoutError:
                raise deadline_exceeded() from None

    async def _anywhere(
        self, request: pb.TokenizeRequest, metadata: Metadata
    ) -> pb.TokenizeResponse:
        places = await self._data_planes.serving(request.model)
        *firsts, last = random.sample(places, min(len(places), _MAX_ATTEMPTS))
        for place in firsts:
            try:
                return await self._ask(place, request, metadata)
            except (UnavailableError, ResourceExhaustedError):
                continue  # another may be there, or have more room
        return await self._ask(last, request, metadata)

    async def _ask(
        self, place: Place, request: pb.TokenizeRequest, metadata: Metadata
    ) -> pb.TokenizeResponse:
        name = f"data plane {place.data_plane_id!r}"
        async with self._channels.lease(place.endpoint) as channel:
            stub: Any = InferenceServiceStub(channel)
            try:
                return await stub.Tokenize(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise UnavailableError(
                        "TOKENIZE_UNKNOWN",
                        f"{name} is of a version without Tokenize: wait until it is replaced",
                        metadata={"data_plane_id": place.data_plane_id},
                    ) from error
                raise typed(error, role="DATA_PLANE", name=name) from error
