"""What is made of files, made anew when they change."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Made = TypeVar("Made")
POLL_S = 1.0


class Watched(Generic[Made]):
    """`make()` of the files at `paths`; `value` is the last that worked.

    make: raises OSError and ValueError for files that do not serve, at first from here, too.
    """

    def __init__(self, paths: Sequence[Path], make: Callable[[], Made]) -> None:
        self._paths = paths
        self._make = make
        self._seen = self._stamps()
        self.value = make()
        self.is_stale = False

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Makes the value anew if a file is another. What does not serve is told once, and the
        value stays."""
        try:
            stamps = self._stamps()
            if stamps == self._seen:
                return
            self._seen = stamps
            self.value = self._make()
            log.info("read again: %s", ", ".join(map(str, self._paths)))
            self.is_stale = False
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                self._seen = []  # a file that comes back may be what it was
            if not self.is_stale:
                log.error("what was read before stays: %s", error)
            self.is_stale = True

    def _stamps(self) -> list[tuple[int, int, int]]:
        """Behind links, as Kubernetes changes these."""
        found = [os.stat(path) for path in self._paths]
        return [(one.st_ino, one.st_mtime_ns, one.st_size) for one in found]
