"""Translation between ChoraleError and the rich gRPC status (google.rpc.Status)."""

from __future__ import annotations

from typing import cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from chorale.errors import BY_CODE, DOMAIN, ChoraleError, InternalError

_UNTYPED_REASON = "UNTYPED"
_CODES = {code_pb2.Code.Value(code.name): code for code in grpc.StatusCode}


def to_status(error: ChoraleError) -> status_pb2.Status:
    """The error as a Status with one ErrorInfo and, where a retry can help, a RetryInfo."""
    details = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    ]
    packed = [_pack(detail) for detail in details]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        packed.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code = code_pb2.Code.Value(error.code.name)
    return status_pb2.Status(code=code, message=error.message, details=packed)


def from_rpc_error(error: grpc.RpcError) -> ChoraleError:
    """The ChoraleError that a server raised.

    A failure that carries no ErrorInfo (a refused connection, a proxy, a local deadline) keeps its
    code and gets the reason "UNTYPED". Codes without a class of their own become InternalError.
    """
    call = cast("grpc.Call", error)
    return _error_of(call.code(), call.details(), _rich_status(call))


def from_status(status: status_pb2.Status) -> ChoraleError:
    """The ChoraleError that `to_status` made the Status of; another Status as in from_rpc_error."""
    return _error_of(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status)


def from_serialized(status: bytes) -> ChoraleError:
    """As from_status, of a serialized Status."""
    return from_status(status_pb2.Status.FromString(status))


def _error_of(
    code: grpc.StatusCode, details: str | None, status: status_pb2.Status | None
) -> ChoraleError:
    cls = BY_CODE.get(code, InternalError)
    message = details or code.name
    reason, metadata, retry_after_s = _UNTYPED_REASON, dict[str, str](), None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):  # False when it is another message
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return cls(reason, message, metadata=metadata, retry_after_s=retry_after_s)


def _rich_status(call: grpc.Call) -> status_pb2.Status | None:
    try:
        return rpc_status.from_call(call)
    except ValueError:  # a status whose details contradict its code: a foreign server
        return None


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
