"""What every Chorale gRPC server has: typed errors, reflection and the health service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from chorale.address import host_port
from chorale.errors import BY_CODE, ChoraleError, InternalError, InvalidArgumentError
from chorale.fleet_tls import FleetTls, check_member
from chorale.frames import forget_frames
from chorale.status import to_status

log = logging.getLogger(__name__)

ErrorTable = Mapping[type[Exception], grpc.StatusCode]
"""Domain exceptions to canonical codes; the class nearest in the method resolution order wins.

Such exceptions carry `reason: str`, `message: str` and `metadata: Mapping[str, str]`, and may carry
`retry_after_s: float | None`.
"""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
MAX_PENDING_CALLS = 16 * 1024
"""Calls that have come and that the event loop has not taken yet. gRPC itself ends those beyond it,
CANCELLED and without a reason, so it is more than what comes while the loop is busy."""
MAX_PENDING_S = 3600
"""How long they may wait: their callers' deadlines are to say that, and gRPC itself would end them
after 30 s in the same way."""
HANDSHAKE_TIMEOUT_S = 10.0
"""From a connection's being opened until it speaks HTTP/2, over TLS or not. gRPC's own 120 s let
those who open connections and say nothing hold all file descriptors."""
MAX_IDLE_S = 300.0
"""Of a connection without a call. It is closed then, and clients open another for the next one."""

Guard = Callable[[str, Sequence[tuple[str, str | bytes]]], None]
"""Called with the method and the metadata of each call before it is handled, in the call's own
context; raises a domain error to refuse it."""


def translate(error: Exception, table: ErrorTable) -> ChoraleError:
    """The ChoraleError that a client is to see. Unknown exceptions tell nothing but INTERNAL."""
    if isinstance(error, ChoraleError):
        return error
    for cls in type(error).__mro__:
        code = table.get(cast("type[Exception]", cls))
        if code is not None:
            domain = cast("Any", error)
            return BY_CODE[code](
                domain.reason,
                domain.message,
                metadata=domain.metadata,
                retry_after_s=getattr(domain, "retry_after_s", None),
            )
    return InternalError("INTERNAL", "internal fault; the server's log has the details")


class TypedErrors(grpc.aio.ServerInterceptor):
    """Ends every failed handler with a rich status; nothing leaves as UNKNOWN.

    guard: whose refusals end calls in the same way. members_only: refuses callers whose certificate
    is not the fleet's.
    """

    def __init__(
        self, table: ErrorTable, guard: Guard | None = None, *, members_only: bool = False
    ) -> None:
        self._table = table
        self._guard = guard
        self._members_only = members_only

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = cast("str", handler_call_details.method)
        if handler is None or not method.startswith("/chorale."):
            return handler
        deserializer = _checked(handler.request_deserializer)
        if handler.request_streaming and not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._wrap_unary(method, handler.stream_unary),
                request_deserializer=deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._wrap_stream(method, handler.stream_stream),
                request_deserializer=deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._wrap_stream(method, handler.unary_stream),
                request_deserializer=deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._wrap_unary(method, handler.unary_unary),
            request_deserializer=deserializer,
            response_serializer=handler.response_serializer,
        )

    def _wrap_unary(self, method: str, call: Callable[..., Awaitable[Any]]) -> Any:
        async def unary(request: Any, context: Any) -> Any:
            try:
                self._let_in(method, context)
                return await call(_well_formed(request), context)
            except Exception as error:
                ends = [self._end(method, error, context)]
                request = context = None
            await ends.pop()

        return unary

    def _wrap_stream(self, method: str, call: Callable[..., AsyncIterator[Any]]) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                self._let_in(method, context)
                async for response in call(_well_formed(request), context):
                    yield response
                return
            except Exception as error:
                ends = [self._end(method, error, context)]
                request = context = None
            await ends.pop()

        return stream

    def _let_in(self, method: str, context: Any) -> None:
        if self._members_only:
            check_member(context)
        if self._guard is not None:
            self._guard(method, context.invocation_metadata() or ())

    def _end(self, method: str, error: Exception, context: Any) -> Awaitable[None]:
        """Raises what ends the call, when awaited.

        grpc keeps that with the call, so no frame that the exception passes may have the call or
        its request: it would be a cycle, of megabytes that are in use until the garbage collector
        comes by.
        """
        if isinstance(error, grpc.aio.AbortError):
            forget_frames(error)
            return _raised(error)
        known = translate(error, self._table)
        if isinstance(known, InternalError):
            log.error("%s failed", method, exc_info=error)
        forget_frames(error)
        return _aborted([context.abort_with_status(rpc_status.to_status(to_status(known)))])


async def _raised(error: Exception) -> None:
    raise error


async def _aborted(abort: list[Awaitable[None]]) -> None:
    try:
        await abort.pop()
    except grpc.aio.InternalError:
        # The client is gone, or its deadline has passed, and grpc does not know that yet. It would
        # log this with a traceback, for each such request.
        raise asyncio.CancelledError from None


def _checked(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """What gives the error to raise in place of a message that cannot be read: raised by itself, it
    would leave as UNKNOWN before any handler."""
    if deserializer is None:
        return None

    def deserialize(message: bytes) -> Any:
        try:
            return deserializer(message)
        except DecodeError as error:
            said = str(error)[:200]
            return InvalidArgumentError("REQUEST_MALFORMED", f"the request is malformed: {said}")

    return deserialize


def _well_formed(request: Any) -> Any:
    """The request of a handler, or its requests. Raises: InvalidArgumentError, for one of several
    when it is read."""
    if isinstance(request, InvalidArgumentError):
        raise request
    return _WellFormed(request) if isinstance(request, AsyncIterable) else request


class _WellFormed:
    def __init__(self, requests: AsyncIterable[Any]) -> None:
        self._requests = aiter(requests)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return _well_formed(await anext(self._requests))


@dataclass
class Server:
    """A grpc.aio server with health and reflection; `port` is the one it listens on."""

    grpc_server: grpc.aio.Server
    health: Any  # grpc_health.v1.health.aio.HealthServicer
    host: str
    port: int = 0
    _services: list[str] = field(default_factory=list[str])

    @property
    def address(self) -> str:
        return host_port(self.host, self.port)

    async def set_serving(self, serving: bool) -> None:
        """Sets the health of the server and of each of its services."""
        status = health_pb2.HealthCheckResponse
        value = status.SERVING if serving else status.NOT_SERVING
        for name in ("", *self._services):
            await self.health.set(name, value)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones go on for `grace_s`, then cancels them."""
        await self.set_serving(False)
        await self.grpc_server.stop(grace_s)


async def start_server(
    *,
    host: str,
    port: int,
    services: Sequence[tuple[str, Callable[[grpc.aio.Server], None]]],
    error_table: ErrorTable,
    max_concurrent_rpcs: int | None = None,
    guard: Guard | None = None,
    credentials: grpc.ServerCredentials | None = None,
    fleet_tls: FleetTls | None = None,
) -> Server:
    """Starts a server on `host`:`port` (0 picks a free port); its health is NOT_SERVING at first.

    services: (full service name, function that adds the servicer to the server).
    guard: lets calls in, but of health and reflection, which are for everybody.
    credentials: for TLS; None: the server speaks plaintext.
    fleet_tls: in place of credentials: it is for members of the fleet alone; health and reflection
    for whoever has a certificate of its authorities.
    Raises: OSError when the address cannot be bound.
    """
    grpc_server = grpc.aio.server(
        interceptors=(TypedErrors(error_table, guard, members_only=fleet_tls is not None),),
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
            ("grpc.server_max_unrequested_time_in_server", MAX_PENDING_S),
            ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_TIMEOUT_S * 1000)),
            ("grpc.max_connection_idle_ms", int(MAX_IDLE_S * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ),
        maximum_concurrent_rpcs=max_concurrent_rpcs,
    )
    health_servicer = cast("Any", health).aio.HealthServicer()  # its stubs lack `aio`
    server = Server(grpc_server, health_servicer, host)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, grpc_server)
    for name, add in services:
        add(grpc_server)
        server._services.append(name)
    names = [name for name, _ in services]
    reflection.enable_server_reflection(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], grpc_server
    )
    address = host_port(host, port)
    if fleet_tls is not None:
        credentials = fleet_tls.server_credentials()
    try:
        server.port = (
            grpc_server.add_insecure_port(address)
            if credentials is None
            else grpc_server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    await server.set_serving(False)
    await grpc_server.start()
    return server
