"""What crosses the gateway to and from the servers behind it: metadata, deadlines, failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_status import rpc_status

from chorale.api_key import KEY as API_KEY
from chorale.errors import ChoraleError, DeadlineExceededError, InternalError, UnavailableError
from chorale.fleet_tls import way_out
from chorale.metadata_token import values_of
from chorale.source_token import KEY as SOURCE_TOKEN
from chorale.status import from_rpc_error
from controlplane.gateway.access.caller import has_shown_key
from controlplane.gateway.repeats import Repeats

_failures = Repeats(logging.getLogger(__name__))

Metadata = tuple[tuple[str, str | bytes], ...]

_rich_status: Any = rpc_status  # it carries no types
_TYPED_DETAILS = "grpc-status-details-bin"
# Of this hop alone. What else a client proves is the control plane's business, and no data plane's.
_HOP_BY_HOP = frozenset({"user-agent", "content-type", "te", "host", "connection", API_KEY})
_NOT_FOR_DATA_PLANES = frozenset({"authorization", "cookie", SOURCE_TOKEN})
_ANSWER_S = 30.0  # what reads or writes the store alone is done long before
_LONGEST_DEADLINE_S = 10 * 365 * 86_400.0
_CONNECTION_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


def forwarded(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """The entries of a client's metadata that go on to the control plane.

    The key that let the call in is none of them. It came as the bearer's token where it has no
    entry of its own; else that token is another's, as the fleet's.
    """
    entries = tuple(metadata or ())
    ended = _HOP_BY_HOP
    if has_shown_key() and not values_of(entries, API_KEY):
        ended |= {"authorization"}
    return tuple(
        (key, value)
        for key, value in entries
        if key not in ended and not key.startswith(("grpc-", ":"))
    )


def for_data_plane(metadata: Metadata) -> Metadata:
    """The entries of `forwarded` that a data plane may see."""
    return tuple(entry for entry in metadata if entry[0] not in _NOT_FOR_DATA_PLANES)


def time_remaining(context: Any) -> float | None:
    """Seconds until the caller's deadline; None when it set none."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None or remaining > _LONGEST_DEADLINE_S else remaining


def is_typed(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server itself raised it, with a rich status."""
    return any(key == _TYPED_DETAILS for key, _ in error.trailing_metadata() or ())


def is_lost(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server behind is gone or going, as against its having refused the request."""
    if is_typed(error):
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return error.code() in _CONNECTION_CODES


def typed(error: grpc.aio.AioRpcError, *, role: str, name: str) -> ChoraleError:
    """The error as the server raised it; a failure of the connection is named after `role`.

    role: UPPER_SNAKE, e.g. "DATA_PLANE". name: which one, for people.
    """
    if is_typed(error):
        return from_rpc_error(error)
    tell(error, name)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return deadline_exceeded()
    if is_lost(error):
        return unreachable(role, name)
    known = from_rpc_error(error)
    metadata = {"code": error.code().name}
    message = f"{name} answered {error.code().name}: {known.message[:200]}"
    return type(known)(f"{role}_FAILED", message, metadata=metadata)


def tell(error: grpc.aio.AioRpcError, name: str) -> None:
    """Logs a failure of the connection, not each time that it is the same."""
    details = error.details() or ""
    said = f"{name}: {error.code().name}: {details}{way_out(details)}"
    _failures.tell(said, time.monotonic())


def unreachable(role: str, name: str) -> UnavailableError:
    return UnavailableError(
        f"{role}_UNREACHABLE", f"{name} cannot be reached; try again soon", retry_after_s=1.0
    )


def deadline_exceeded() -> DeadlineExceededError:
    return DeadlineExceededError(
        "DEADLINE_EXCEEDED", "the call's deadline passed; allow it more time or ask for less"
    )


async def ask_control_plane(
    method: Any, request: Any, *, timeout_s: float = _ANSWER_S, metadata: Metadata = ()
) -> Any:
    """One unary call. Raises: ChoraleError."""
    try:
        return await method(request, timeout=timeout_s, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise typed(error, role="CONTROL_PLANE", name="the control plane") from error


async def end_as_upstream(
    error: grpc.aio.AioRpcError, context: Any, *, role: str, name: str
) -> ChoraleError:
    """Ends the call with the very status of the server behind; returns what to raise when it had
    none that is typed."""
    if is_typed(error):
        try:
            status = _rich_status.from_call(error)
        except ValueError:  # details that contradict the code: a foreign server
            status = None
        if status is None:
            return InternalError(f"{role}_FAILED", f"{name} answered with a malformed status")
        await context.abort_with_status(_rich_status.to_status(status))
    return typed(error, role=role, name=name)
