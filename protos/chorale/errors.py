"""Errors that cross a Chorale API, on either side of it.

    ChoraleError                  a canonical gRPC code with one ErrorInfo
    ├── InvalidArgumentError      INVALID_ARGUMENT: a field is out of range; the request never works
    ├── FailedPreconditionError   FAILED_PRECONDITION: not in the state that the system is in
    ├── NotFoundError             NOT_FOUND: model, adapter, version, alias
    ├── AlreadyExistsError        ALREADY_EXISTS: the name is taken
    ├── UnauthenticatedError      UNAUTHENTICATED: ticket or token missing, expired or forged
    ├── PermissionDeniedError     PERMISSION_DENIED: known, but not allowed
    ├── ResourceExhaustedError    RESOURCE_EXHAUSTED: no capacity now; try after `retry_after_s`
    ├── UnavailableError          UNAVAILABLE: going away or not there; try after `retry_after_s`
    ├── DeadlineExceededError     DEADLINE_EXCEEDED: the caller's time is over
    ├── CancelledError            CANCELLED: the caller, or the connection to it, went away
    └── InternalError             INTERNAL: a fault of ours; details are in the server's log

Servers raise them (or domain errors that an `ErrorTable` translates); clients get them from
`chorale.status.from_rpc_error`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import grpc

DOMAIN = "chorale"


class ChoraleError(Exception):
    """A failed call.

    reason: what went wrong, in UPPER_SNAKE; stable, for programs.
    message: for people; names the field, the value and the way out.
    metadata: the same facts for programs.
    retry_after_s: seconds after which the same call may succeed; None when it will not by waiting.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_s = retry_after_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reason={self.reason!r}, message={self.message!r})"


class InvalidArgumentError(ChoraleError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class FailedPreconditionError(ChoraleError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class NotFoundError(ChoraleError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(ChoraleError):
    code = grpc.StatusCode.ALREADY_EXISTS


class UnauthenticatedError(ChoraleError):
    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(ChoraleError):
    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhaustedError(ChoraleError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(ChoraleError):
    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(ChoraleError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledError(ChoraleError):
    code = grpc.StatusCode.CANCELLED


class InternalError(ChoraleError):
    code = grpc.StatusCode.INTERNAL


_ERRORS: tuple[type[ChoraleError], ...] = (
    InvalidArgumentError,
    FailedPreconditionError,
    NotFoundError,
    AlreadyExistsError,
    UnauthenticatedError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
    DeadlineExceededError,
    CancelledError,
    InternalError,
)
BY_CODE: Mapping[grpc.StatusCode, type[ChoraleError]] = {error.code: error for error in _ERRORS}
