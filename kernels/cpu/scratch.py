"""Memory that kernels compute in."""

from __future__ import annotations

from kernels.cpu.floats import aligned_floats


class Scratch:
    """A buffer kept between calls (one engine thread), grown as needed.

    buffer: float32, uninitialised.
    """

    def __init__(self, growth: int = 1) -> None:
        """growth: how many times what is asked for, where every call asks for more."""
        self._growth = growth
        self.buffer = aligned_floats(0)

    def address(self, size: int) -> int:
        """Of room for `size` float32, until the next call."""
        if self.buffer.size < size:
            self.buffer = aligned_floats(self._growth * size)
        return self.buffer.ctypes.data
