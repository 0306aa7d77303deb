"""A second stream, for work that may run beside what the current stream does next."""

from __future__ import annotations

from collections.abc import Callable

import torch


class SideStream:
    """Works eagerly and while a CUDA graph is captured, where it becomes a branch of the graph.

    Memory that the work uses must have been allocated for the current stream before `fork`, and
    live until `join`, that of what comes afterwards until `finish`: then no allocator needs to know
    of the second stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._worked: torch.cuda.Event | None = None

    def fork(self, work: Callable[[], object], afterwards: Callable[[], object]) -> None:
        """Launches both, work that comes after all that the current stream was given so far, and
        what `join` does not wait for."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            work()
            self._worked = torch.cuda.Event()
            self._worked.record(self._stream)
            afterwards()

    def join(self) -> None:
        """What the current stream is given from now on comes after the last work."""
        assert self._worked is not None
        torch.cuda.current_stream(self._stream.device).wait_event(self._worked)

    def finish(self) -> None:
        """As `join`, and after all that was launched here. A capture cannot end before."""
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
