"""The data plane's error table: domain exceptions to canonical gRPC code names."""

from __future__ import annotations

from collections.abc import Mapping

from dataplane.errors import (
    AdapterRefusedError,
    AdapterUnloadedError,
    ConstraintError,
    ConstraintsUnsupportedError,
    DeadlineError,
    HopelessError,
    ModelNotFoundError,
    NonFiniteOutputError,
    PoolTooSmallError,
    QueueFullError,
)
from storage.errors import (
    AdapterFormatError,
    AdapterMismatchError,
    DigestMismatchError,
    LoaderClosedError,
    OutsideRootsError,
    SourceAccessError,
    SourceError,
    SourceExtraMissingError,
    SourceNotAllowedError,
    TierError,
)

CODES: Mapping[type[Exception], str] = {
    AdapterFormatError: "FAILED_PRECONDITION",
    AdapterMismatchError: "FAILED_PRECONDITION",
    AdapterRefusedError: "FAILED_PRECONDITION",
    AdapterUnloadedError: "UNAVAILABLE",
    ConstraintError: "INVALID_ARGUMENT",
    ConstraintsUnsupportedError: "FAILED_PRECONDITION",
    DeadlineError: "DEADLINE_EXCEEDED",
    DigestMismatchError: "FAILED_PRECONDITION",
    HopelessError: "RESOURCE_EXHAUSTED",
    LoaderClosedError: "UNAVAILABLE",
    ModelNotFoundError: "NOT_FOUND",
    NonFiniteOutputError: "FAILED_PRECONDITION",
    OutsideRootsError: "PERMISSION_DENIED",
    PoolTooSmallError: "FAILED_PRECONDITION",
    QueueFullError: "RESOURCE_EXHAUSTED",
    SourceAccessError: "PERMISSION_DENIED",
    SourceError: "UNAVAILABLE",
    SourceExtraMissingError: "FAILED_PRECONDITION",
    SourceNotAllowedError: "PERMISSION_DENIED",
    TierError: "RESOURCE_EXHAUSTED",
}
"""The class nearest in the method resolution order wins; others are INTERNAL."""


def code_of(error: Exception) -> str:
    for cls in type(error).__mro__:
        if cls in CODES:
            return CODES[cls]
    return "INTERNAL"
