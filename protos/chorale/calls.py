"""One unary call, with the failures of `chorale.errors`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from chorale.status import from_rpc_error


def call(
    method: Any, request: Any, timeout: float | None, metadata: Sequence[tuple[str, str]] = ()
) -> Any:
    """Raises: ChoraleError."""
    try:
        return method(request, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


async def async_call(
    method: Any, request: Any, timeout: float | None, metadata: Sequence[tuple[str, str]] = ()
) -> Any:
    """Raises: ChoraleError."""
    try:
        return await method(request, timeout=timeout, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
