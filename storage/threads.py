"""Blocking work that may hang for ever, kept away from the pools that everybody shares."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from storage.errors import SourceUnavailableError, excerpt

T = TypeVar("T")
_MAX_PER_KEY = 32


class LoneThreads:
    """Runs each job on a thread of its own, which dies with the process and blocks nobody.

    `_MAX_PER_KEY` jobs of one key may run at once, those that hang included. Belongs to one event
    loop.
    """

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    async def run(self, key: str, work: Callable[[], T]) -> T:
        """What `work` returns or raises. A cancelled caller leaves its thread behind.

        Raises: SourceUnavailableError when too many of this key run.
        """
        if self._running[key] >= _MAX_PER_KEY:
            raise SourceUnavailableError(
                f"{self._running[key]} reads of {excerpt(key)} are under way and do not end; it "
                "seems to hang: try again when it answers",
                metadata={"origin": key[:200]},
            )
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = work(), None
            except BaseException as error:
                outcome = None, error
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who waited
                loop.call_soon_threadsafe(finish, *outcome)

        self._running[key] += 1
        try:
            threading.Thread(target=run, name="lone", daemon=True).start()
        except RuntimeError:  # no thread to be had
            self._running[key] -= 1
            raise
        return await done
