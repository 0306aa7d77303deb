"""The event loop that our servers run on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_MAX_OPEN_FILES = 65_536


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, which takes less processor time for each event; None, which means asyncio's own,
    where there is no uvloop (it is not made for Windows)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, with as many open files allowed as the system lets it."""
    _raise_open_files()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)


def _raise_open_files() -> None:
    """Systems give processes 1,024 at first, for select()'s sake: fewer than the connections that a
    server takes, and those of one port leave none to the other."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # macOS has a limit beside this one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
