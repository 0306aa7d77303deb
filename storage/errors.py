"""Errors of the storage room.

StorageError
├── AdapterFormatError              the files themselves cannot be served
│   ├── BadConfigError              BAD_CONFIG
│   ├── BadWeightsError             BAD_WEIGHTS
│   │   └── PickleRefusedError      PICKLE_REFUSED
│   ├── UnsupportedFeatureError     UNSUPPORTED_FEATURE
│   ├── NonFiniteError              NON_FINITE_VALUES
│   ├── MergeRefusedError           MERGE_REFUSED: adapters that do not go together, or no recipe
│   └── AdapterTooLargeError        ADAPTER_TOO_LARGE
├── AdapterMismatchError            sound files, but not for this base model:
│                                   BASE_MODEL_MISMATCH, SHAPE_MISMATCH, UNKNOWN_MODULE,
│                                   MISSING_MODULES, UNSELECTED_MODULES
├── SourceError                     the files could not be had
│   ├── SourceNotFoundError         SOURCE_NOT_FOUND
│   ├── OutsideRootsError           SOURCE_OUTSIDE_ROOTS
│   ├── UnsupportedSchemeError      UNSUPPORTED_SCHEME
│   ├── SourceUnreadableError       SOURCE_UNREADABLE
│   ├── SourceNotAllowedError       SOURCE_NOT_ALLOWED: not on the operator's lists
│   ├── SourceAccessError           SOURCE_ACCESS_DENIED: the source refuses this caller
│   ├── SourceExtraMissingError     SOURCE_EXTRA_MISSING: a package is not installed here
│   └── SourceUnavailableError      SOURCE_UNAVAILABLE: tried again without success; may pass
│       └── SourceTimeoutError      SOURCE_TIMEOUT
├── UploadError                     UPLOAD_INVALID
│   ├── UploadOffsetError           UPLOAD_OFFSET
│   ├── UploadBusyError             UPLOAD_BUSY: another call writes the same upload
│   ├── UploadDamagedError          UPLOAD_DAMAGED: not the bytes that were announced
│   ├── BlobQuotaError              BLOB_QUOTA_EXCEEDED
│   └── BlobWriteError              BLOB_WRITE_FAILED: the disk takes no more
├── DigestMismatchError             DIGEST_MISMATCH
├── LoaderClosedError               LOADER_CLOSED
└── TierError
    ├── TierFullError               TIER_FULL
    └── TierWriteError              TIER_WRITE_FAILED
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


def excerpt(value: object, limit: int = 200) -> str:
    """`repr` of an untrusted value, at most about `limit` characters."""
    if isinstance(value, str | bytes):
        text = repr(value[: limit + 1])
    elif isinstance(value, list | dict | tuple | set | frozenset):
        kind = type(value).__name__  # pyright: ignore[reportUnknownArgumentType]
        text = f"a {kind} of {len(value)}"  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, int) and value.bit_length() > 600:
        text = f"an integer of {value.bit_length()} bits"
    else:
        text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


class StorageError(Exception):
    """Base of all errors here.

    reason: UPPER_SNAKE, stable. message: names the field, the value and the way out.
    metadata: short strings for machines.
    """

    default_reason: ClassVar[str] = "STORAGE_ERROR"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = dict(metadata or {})


class AdapterFormatError(StorageError):
    default_reason = "BAD_ADAPTER"


class BadConfigError(AdapterFormatError):
    default_reason = "BAD_CONFIG"


class BadWeightsError(AdapterFormatError):
    default_reason = "BAD_WEIGHTS"


class PickleRefusedError(BadWeightsError):
    default_reason = "PICKLE_REFUSED"


class UnsupportedFeatureError(AdapterFormatError):
    default_reason = "UNSUPPORTED_FEATURE"


class NonFiniteError(AdapterFormatError):
    default_reason = "NON_FINITE_VALUES"


class MergeRefusedError(AdapterFormatError):
    default_reason = "MERGE_REFUSED"


class AdapterTooLargeError(AdapterFormatError):
    default_reason = "ADAPTER_TOO_LARGE"


class AdapterMismatchError(StorageError):
    default_reason = "BASE_MODEL_MISMATCH"


class SourceError(StorageError):
    default_reason = "SOURCE_FAILED"


class SourceNotFoundError(SourceError):
    default_reason = "SOURCE_NOT_FOUND"


class OutsideRootsError(SourceError):
    default_reason = "SOURCE_OUTSIDE_ROOTS"


class UnsupportedSchemeError(SourceError):
    default_reason = "UNSUPPORTED_SCHEME"


class SourceUnreadableError(SourceError):
    default_reason = "SOURCE_UNREADABLE"


class SourceNotAllowedError(SourceError):
    default_reason = "SOURCE_NOT_ALLOWED"


class SourceAccessError(SourceError):
    default_reason = "SOURCE_ACCESS_DENIED"


class SourceExtraMissingError(SourceError):
    default_reason = "SOURCE_EXTRA_MISSING"


class SourceUnavailableError(SourceError):
    default_reason = "SOURCE_UNAVAILABLE"
    retry_after_s: ClassVar[float] = 1.0


class SourceTimeoutError(SourceUnavailableError):
    default_reason = "SOURCE_TIMEOUT"


class UploadError(StorageError):
    default_reason = "UPLOAD_INVALID"


class UploadOffsetError(UploadError):
    default_reason = "UPLOAD_OFFSET"


class UploadBusyError(UploadError):
    default_reason = "UPLOAD_BUSY"
    retry_after_s: ClassVar[float] = 1.0


class UploadDamagedError(UploadError):
    default_reason = "UPLOAD_DAMAGED"


class BlobQuotaError(UploadError):
    default_reason = "BLOB_QUOTA_EXCEEDED"


class BlobWriteError(UploadError):
    default_reason = "BLOB_WRITE_FAILED"


class DigestMismatchError(StorageError):
    default_reason = "DIGEST_MISMATCH"


class LoaderClosedError(StorageError):
    default_reason = "LOADER_CLOSED"


class TierError(StorageError):
    default_reason = "TIER_FAILED"


class TierFullError(TierError):
    default_reason = "TIER_FULL"


class TierWriteError(TierError):
    default_reason = "TIER_WRITE_FAILED"
