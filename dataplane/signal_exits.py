"""Signals that end a process, but not while it takes what it must give back."""

from __future__ import annotations

import contextlib
from collections.abc import Generator


class SignalExits:
    """A handler of signals that ends this process cleanly, by SystemExit."""

    def __init__(self) -> None:
        self._is_put_off = False
        self._came = False

    def __call__(self, number: int, frame: object) -> None:
        self._came = True
        if not self._is_put_off:
            raise SystemExit(0)

    @contextlib.contextmanager
    def put_off(self) -> Generator[None]:
        """A signal that comes inside ends this process afterwards."""
        self._is_put_off = True
        try:
            yield
        finally:
            self._is_put_off = False
        if self._came:
            raise SystemExit(0)
