"""Reads a request's JSON object, whoever sends it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from controlplane.gateway.http.failures import ApiError, bad_request, quoted

# For the whole body: a client that trickles it holds a connection and memory.
_TIMEOUT_S = 30.0
# Long bodies at once share the room of this many of the longest; every short one has its own.
_MAX_LONGEST = 32
_SHORT_BYTES = 64 * 1024


def require_json(request: Request) -> None:
    """For what changes something: a browser sends this content type to another site only after
    asking with OPTIONS, which is never granted here, so that no web page can call it.

    Raises: ApiError 415.
    """
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415,
            f"content-type is {quoted(given)}; send the body with content-type: application/json",
            code="unsupported_media_type",
        )


class Bodies:
    """Reads bodies of at most `max_body_bytes`, and bounds what is held of those on their way."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._room_bytes = _MAX_LONGEST * max_body_bytes

    async def read_object(self, request: Request) -> dict[str, Any]:
        """The body as a JSON object.

        Raises: ApiError 400 (not JSON, too deep, not an object), 408 (too slow), 413 (too long),
        503 (too much at once).
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return _parsed(await self._read(request))
        except TimeoutError as error:
            message = f"the body did not arrive within {_TIMEOUT_S:g} s"
            raise ApiError(408, message, code="request_timeout") from error
        except ClientDisconnect as error:
            raise ApiError(499, "the client went away", code="client_closed_request") from error

    async def _read(self, request: Request) -> bytearray:
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._max_body_bytes:
            raise _too_long(self._max_body_bytes)
        body = bytearray()
        held = 0
        try:
            async for part in request.stream():
                body += part
                if len(body) > self._max_body_bytes:
                    raise _too_long(self._max_body_bytes)
                taken = max(0, len(body) - _SHORT_BYTES) - held
                if taken > self._room_bytes:
                    raise ApiError(
                        503,
                        "too many long bodies at once; try again soon",
                        code="too_many_bodies",
                        retry_after_s=1.0,
                    )
                held += taken
                self._room_bytes -= taken
            return body
        finally:
            self._room_bytes += held


@contextmanager
def _without_collections() -> Generator[None]:
    """Of garbage: a body of nothing but lists has millions, and to look through them again and
    again as they become more took 5 s in which no stream went on."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # old now, without being looked through
        gc.enable()


def _parsed(raw: bytearray) -> dict[str, Any]:
    try:
        with _without_collections() if len(raw) > _SHORT_BYTES else nullcontext():
            # Its parser bounds the depth, refuses lone surrogates and, so asked, NaN.
            value: object = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        message = f"the body is not valid JSON: {str(error)[:200]}"
        raise bad_request(None, message, "invalid_json") from error
    if not isinstance(value, dict):
        raise bad_request(None, "the body must be a JSON object", "invalid_json")
    return cast("dict[str, Any]", value)


def _too_long(max_body_bytes: int) -> ApiError:
    message = f"the body is longer than {max_body_bytes} bytes; send less at once"
    return ApiError(413, message, code="request_too_large")
