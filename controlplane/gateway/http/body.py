"""Reads a request's JSON object, whoever sends it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from controlplane.gateway.http.failures import ApiError, bad_request

# For the whole body: a client that trickles it holds a connection and memory.
_TIMEOUT_S = 30.0


async def read_object(request: Request, max_body_bytes: int) -> dict[str, Any]:
    """The body as a JSON object, at most `max_body_bytes` long.

    Raises: ApiError 400 (not JSON, too deep, not an object), 408 (too slow), 413 (too long).
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            raw = await _read(request, max_body_bytes)
    except TimeoutError as error:
        message = f"the body did not arrive within {_TIMEOUT_S:g} s"
        raise ApiError(408, message, code="request_timeout") from error
    except ClientDisconnect as error:
        raise ApiError(499, "the client went away", code="client_closed_request") from error
    try:
        # Its parser bounds the depth, refuses lone surrogates and, so asked, NaN.
        value: object = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        message = f"the body is not valid JSON: {str(error)[:200]}"
        raise bad_request(None, message, "invalid_json") from error
    if not isinstance(value, dict):
        raise bad_request(None, "the body must be a JSON object", "invalid_json")
    return cast("dict[str, Any]", value)


async def _read(request: Request, max_body_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_body_bytes:
        raise _too_long(max_body_bytes)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_body_bytes:
            raise _too_long(max_body_bytes)
    return bytes(body)


def _too_long(max_body_bytes: int) -> ApiError:
    message = f"the body is longer than {max_body_bytes} bytes; send less at once"
    return ApiError(413, message, code="request_too_large")
