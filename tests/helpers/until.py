"""Waiting for what another task, thread or process does, by the clock and not by tries."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(
    condition: Callable[[], T | Awaitable[T]], what: str = "", within_s: float = 30.0
) -> T:
    """What `condition`, of this task or to be awaited, is once it is true; TimeoutError about
    `what` when it is not in time."""
    clock = asyncio.get_running_loop().time
    end_s = clock() + within_s
    while True:
        found = condition()
        value: T = await found if inspect.isawaitable(found) else found  # type: ignore[assignment]
        if value:
            return value
        if clock() > end_s:
            raise TimeoutError(f"not within {within_s:g} s: {what or condition}")
        await asyncio.sleep(0.01)
