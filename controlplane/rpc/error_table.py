"""The one table from domain errors to gRPC codes."""

from __future__ import annotations

import grpc

from chorale.server import ErrorTable
from controlplane import errors
from storage import errors as storage_errors

ERROR_TABLE: ErrorTable = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownNameError: grpc.StatusCode.NOT_FOUND,
    errors.NameTakenError: grpc.StatusCode.ALREADY_EXISTS,
    errors.ConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FleetFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnreachableError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyTenantsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NoDataPlaneError: grpc.StatusCode.UNAVAILABLE,
    errors.StoreUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.StoreBusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    storage_errors.AdapterFormatError: grpc.StatusCode.INVALID_ARGUMENT,
    storage_errors.DigestMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    storage_errors.AdapterMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    storage_errors.SourceError: grpc.StatusCode.INVALID_ARGUMENT,
    storage_errors.SourceNotFoundError: grpc.StatusCode.NOT_FOUND,
    storage_errors.OutsideRootsError: grpc.StatusCode.PERMISSION_DENIED,
    storage_errors.SourceNotAllowedError: grpc.StatusCode.PERMISSION_DENIED,
    storage_errors.SourceAccessError: grpc.StatusCode.PERMISSION_DENIED,
    storage_errors.SourceExtraMissingError: grpc.StatusCode.FAILED_PRECONDITION,
    storage_errors.SourceUnavailableError: grpc.StatusCode.UNAVAILABLE,
    storage_errors.UploadError: grpc.StatusCode.INVALID_ARGUMENT,
    storage_errors.UploadOffsetError: grpc.StatusCode.FAILED_PRECONDITION,
    storage_errors.UploadBusyError: grpc.StatusCode.UNAVAILABLE,
    storage_errors.BlobQuotaError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    storage_errors.BlobWriteError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
