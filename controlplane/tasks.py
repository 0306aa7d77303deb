"""Ending tasks that talk to Redis."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 0.1


async def end(task: asyncio.Task[Any]) -> None:
    """Cancels the task until it has ended; what it raised is not raised here.

    Once is not enough: when one of redis-py's timeouts fires in the same moment, it turns the
    cancellation into a TimeoutError, and a task that goes on after errors goes on for ever.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_AGAIN_S)
    if not task.cancelled():
        task.exception()  # retrieved, or asyncio would report it as lost
