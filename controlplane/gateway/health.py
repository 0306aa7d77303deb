"""Keeps the gateway's health what the control plane's is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controlplane.gateway.upstream import tell

_TIMEOUT_S = 2.0


class ControlPlaneHealth:
    """Asks the control plane each `interval_s` and tells `changed` when the answer is another."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        changed: Callable[[bool], Awaitable[None]],
        *,
        interval_s: float = 0.5,
    ) -> None:
        self._stub: Any = health_pb2_grpc.HealthStub(channel)
        self._changed = changed
        self._interval_s = interval_s
        self.serving = False
        self.stopping = False

    async def stop(self) -> None:
        """From now on it is told that the gateway does not serve; `watch` has ended."""
        self.stopping, self.serving = True, False
        await self._changed(False)

    async def watch(self) -> None:
        """Runs until it is cancelled."""
        while True:
            serving = await self._ask()
            if serving != self.serving:
                self.serving = serving
                await self._changed(serving)
            await asyncio.sleep(self._interval_s)

    async def _ask(self) -> bool:
        try:
            answer = await self._stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            tell(error, "the control plane")
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING
