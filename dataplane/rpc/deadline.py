"""The caller's deadline, and answering before it passes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, cast

import grpc

from chorale.errors import DeadlineExceededError

# The answer must be there before the caller's own clock runs out, or the caller sees a bare status.
_ANSWER_MARGIN_S = 0.05
_ANSWER_MARGIN_SHARE = 0.1


def deadline_of(context: grpc.aio.ServicerContext[Any, Any], arrival_s: float) -> float | None:
    """When to have answered, on the clock of `arrival_s` (time.monotonic); None: no deadline."""
    remaining_s = cast("float | None", context.time_remaining())
    if remaining_s is None:
        return None
    margin_s = min(_ANSWER_MARGIN_S, remaining_s * _ANSWER_MARGIN_SHARE)
    return arrival_s + remaining_s - margin_s


@contextlib.asynccontextmanager
async def within(deadline_s: float | None) -> AsyncGenerator[None]:
    """Cancels the block at `deadline_s` (time.monotonic, which is the event loop's clock too).

    Raises: DeadlineExceededError.
    """
    try:
        async with asyncio.timeout_at(deadline_s):
            yield
    except TimeoutError:
        raise DeadlineExceededError(
            "DEADLINE_EXCEEDED",
            "the call's deadline passed before the completion was finished; tokens sent so far "
            "stay valid",
        ) from None
