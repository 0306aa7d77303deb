"""Time that passes at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def leap(seconds: float) -> None:
    """Sets the clock of the running event loop ahead: what it has timers for until then is due.
    Those of gRPC, of threads and of other processes are not touched."""
    loop: Any = asyncio.get_running_loop()
    now: Callable[[], float] = loop.time
    loop.time = lambda: now() + seconds
