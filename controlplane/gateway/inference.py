"""InferenceService of the gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceServicer
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

        def end(_: Any) -> None:
            generation.end()

        # The handler may be cancelled between two events, where no `finally` of it runs at once.
        context.add_done_callback(end)
        async with aclosing(generation.events()) as events:
            async for event in events:
                yield event
