"""InferenceService of the gateway."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceServicer
from controlplane.gateway.generation import Generation
from controlplane.gateway.relay import Relay
from controlplane.gateway.tokenizing import Tokenizing
from controlplane.gateway.upstream import forwarded, time_remaining


class InferenceServicer(InferenceServiceServicer):
    """Passes generations to the relay, and texts to data planes."""

    def __init__(self, relay: Relay, tokenizing: Tokenizing) -> None:
        self._relay = relay
        self._tokenizing = tokenizing

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        return await self._tokenizing.tokenize(
            request,
            timeout_s=time_remaining(context),
            metadata=forwarded(context.invocation_metadata()),
        )

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncGenerator[pb.GenerateResponse]:
        generation = self._relay.start(
            request,
            timeout_s=time_remaining(context),
            metadata=forwarded(context.invocation_metadata()),
        )

        # The handler may be cancelled between two events, where no `finally` of it runs at once.
        context.add_done_callback(partial(_end, weakref.ref(generation)))
        async with aclosing(generation.events()) as events:
            async for event in events:
                yield event


def _end(generation: weakref.ref[Generation], _: object) -> None:
    """A call has its callbacks, and they have it, until the garbage collector comes by: so long no
    request is to be kept."""
    running = generation()
    if running is not None:
        running.end()
