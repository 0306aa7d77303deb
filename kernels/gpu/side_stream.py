"""A second stream, for work that may run beside what the current stream does next."""

from __future__ import annotations

from collections.abc import Callable

import torch


class SideStream:
    """Works eagerly and while a CUDA graph is captured, where it becomes a branch of the graph.

    Memory that the work uses must have been allocated for the current stream before `fork`, and
    live until `join`: then no allocator needs to know of the second stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def fork(self, work: Callable[[], object]) -> None:
        """Launches work that comes after all that the current stream was given so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            work()

    def join(self) -> None:
        """What the current stream is given from now on comes after the work."""
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
