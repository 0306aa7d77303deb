"""Passes whole services on to the control plane, message by message, as bytes.

Nothing is parsed on the way but what is rewritten, so fields that this version does not know go
through.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from controlplane.gateway.first_status import FirstStatus
from controlplane.gateway.gate import Gate
from controlplane.gateway.upstream import end_as_upstream, forwarded, time_remaining

_grpc: Any = grpc  # its stubs leave type parameters open
Unary = Callable[[Any, Any], Awaitable[bytes]]
Rewrite = Callable[[bytes], bytes]


def proxied(
    service: ServiceDescriptor,
    channel: grpc.aio.Channel,
    gate: Gate,
    *,
    methods: Sequence[str] | None = None,
    rewrites: Mapping[str, Rewrite] | None = None,
) -> tuple[str, Callable[[grpc.aio.Server], None]]:
    """The service for `start_server`, its `methods` (None: all of them) passed on to `channel`.

    Methods left out answer UNIMPLEMENTED. rewrites: by method, what makes of a request the one
    that is passed on; only for methods with one request and one answer.
    """
    rewrites = rewrites or {}
    chosen = [m for m in service.methods if methods is None or m.name in methods]
    handlers: dict[str, Any] = {
        method.name: _handler(method, channel, gate, rewrites.get(method.name)) for method in chosen
    }
    handler = grpc.method_handlers_generic_handler(service.full_name, handlers)

    def add(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((handler,))

    return service.full_name, add


def _handler(
    method: MethodDescriptor, channel: grpc.aio.Channel, gate: Gate, rewrite: Rewrite | None
) -> Any:
    """For each kind of method that our services have."""
    if method.server_streaming:
        assert not method.client_streaming, f"{method.full_name}: no service has streams both ways"
        return _grpc.unary_stream_rpc_method_handler(_pass_on_answers(method, channel, gate))
    pass_on = _pass_on(method, channel, gate, rewrite)
    if method.client_streaming:
        return _grpc.stream_unary_rpc_method_handler(pass_on)
    return _grpc.unary_unary_rpc_method_handler(pass_on)


def _pass_on(
    method: MethodDescriptor, channel: grpc.aio.Channel, gate: Gate, rewrite: Rewrite | None
) -> Unary:
    """With one answer. The request is the bytes of one message, or an iterator of such."""
    channel_ = cast("Any", channel)
    connect = channel_.stream_unary if method.client_streaming else channel_.unary_unary
    call = connect(f"/{method.containing_service.full_name}/{method.name}")

    async def unary(request: Any, context: Any) -> bytes:
        with gate.place():
            answer = call(
                request if rewrite is None else rewrite(request),
                timeout=time_remaining(context),
                metadata=forwarded(context.invocation_metadata()),
            )
            status = FirstStatus(answer)
            try:
                return await answer
            except grpc.aio.AioRpcError as error:
                raise await end_as_upstream(
                    status.of(error), context, role="CONTROL_PLANE", name="the control plane"
                ) from error

    return unary


def _pass_on_answers(
    method: MethodDescriptor, channel: grpc.aio.Channel, gate: Gate
) -> Callable[[bytes, Any], AsyncIterator[bytes]]:
    connect = cast("Any", channel).unary_stream
    call = connect(f"/{method.containing_service.full_name}/{method.name}")

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        with gate.place():
            try:
                answers = call(
                    request,
                    timeout=time_remaining(context),
                    metadata=forwarded(context.invocation_metadata()),
                )
                async for answer in answers:
                    yield answer
            except grpc.aio.AioRpcError as error:
                raise await end_as_upstream(
                    error, context, role="CONTROL_PLANE", name="the control plane"
                ) from error

    return stream
