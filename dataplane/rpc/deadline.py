"""The caller's deadline, and answering before it passes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from chorale.errors import DeadlineExceededError

# The answer must be there before the caller's own clock runs out, or the caller sees a bare status.
_ANSWER_MARGIN_S = 0.05
_ANSWER_MARGIN_SHARE = 0.1


def deadline_of(remaining_s: float | None, arrival_s: float) -> float | None:
    """When to have answered a caller that waits `remaining_s` seconds (None: for ever), on the
    clock of `arrival_s` (time.monotonic); None: no deadline."""
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
        raise deadline_passed() from None


def deadline_passed() -> DeadlineExceededError:
    return DeadlineExceededError(
        "DEADLINE_EXCEEDED",
        "the call's deadline passed before the completion was finished; tokens sent so far "
        "stay valid",
    )
