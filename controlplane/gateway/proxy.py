"""Passes whole services on to the control plane, message by message, as bytes.

Nothing is parsed on the way, so fields that this version does not know go through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from controlplane.gateway.gate import Gate
from controlplane.gateway.upstream import end_as_upstream, forwarded, time_remaining

Unary = Callable[[bytes, Any], Awaitable[bytes]]


def proxied(
    service: ServiceDescriptor,
    channel: grpc.aio.Channel,
    gate: Gate,
    *,
    methods: Sequence[str] | None = None,
) -> tuple[str, Callable[[grpc.aio.Server], None]]:
    """The service for `start_server`, its `methods` (None: all of them) passed on to `channel`.

    Methods left out answer UNIMPLEMENTED.
    """
    chosen = [m for m in service.methods if methods is None or m.name in methods]
    handlers: dict[str, Any] = {
        method.name: grpc.unary_unary_rpc_method_handler(_pass_on(method, channel, gate))
        for method in chosen
    }
    handler = grpc.method_handlers_generic_handler(service.full_name, handlers)

    def add(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((handler,))

    return service.full_name, add


def _pass_on(method: MethodDescriptor, channel: grpc.aio.Channel, gate: Gate) -> Unary:
    connect = cast("Any", channel).unary_unary
    call = connect(f"/{method.containing_service.full_name}/{method.name}")

    async def unary(request: bytes, context: Any) -> bytes:
        with gate.place():
            try:
                return await call(
                    request,
                    timeout=time_remaining(context),
                    metadata=forwarded(context.invocation_metadata()),
                )
            except grpc.aio.AioRpcError as error:
                raise await end_as_upstream(
                    error, context, role="CONTROL_PLANE", name="the control plane"
                ) from error

    return unary
