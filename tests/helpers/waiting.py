"""Waiting for what another task, thread or process brings about: by the clock, not by tries."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar, cast

T = TypeVar("T")

# A busy machine may stand still for seconds; nobody waits for it where all is well.
PATIENCE_S = 60.0
_POLL_S = 0.02


def until(
    condition: Callable[[], T | None], within_s: float = PATIENCE_S, *, every_s: float = _POLL_S
) -> T:
    """What the condition comes to, once that is true of it. Raises: AssertionError, with the last
    that it came to, when it does not in time; what the condition raises."""
    until_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < until_s, f"not within {within_s:g} s: {found!r}"
        time.sleep(every_s)
    return found


async def eventually(
    condition: Callable[[], T | Awaitable[T]],
    what: str = "",
    within_s: float = PATIENCE_S,
    *,
    every_s: float = 0.005,
) -> T:
    """As `until`, while the other tasks of this event loop go on. The condition may be awaited."""
    until_s = time.monotonic() + within_s
    while True:
        found = condition()
        value = cast("T", await found if inspect.isawaitable(found) else found)
        if value:
            return value
        assert time.monotonic() < until_s, f"not within {within_s:g} s: {what} {value!r}"
        await asyncio.sleep(every_s)


@contextmanager
def refusing() -> Generator[str]:
    """HOST:PORT where connections are refused inside: it is taken, and nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"
