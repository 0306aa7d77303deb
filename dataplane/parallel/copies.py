"""An adapter's copy into the pools of all ranks, as rank 0 sees it."""

from __future__ import annotations

from collections.abc import Callable

from dataplane.lora.copier import PoolCopy


class RemoteProgress:
    """How far the workers are with one copy; what they last told. Written on the threads that
    listen to them, read by the one that owns the pool."""

    def __init__(self, num_workers: int, remaining_bytes: int) -> None:
        self._layers = [0] * num_workers
        self._remaining = [remaining_bytes] * num_workers

    def note(self, worker: int, num_layers_in: int, remaining_bytes: int) -> None:
        self._layers[worker] = num_layers_in
        self._remaining[worker] = remaining_bytes

    @property
    def num_layers_in(self) -> int:
        return min(self._layers)

    @property
    def remaining_bytes(self) -> int:
        """Of the worker that lacks most: all copy at once."""
        return max(self._remaining)


class CopyOnAllRanks:
    """A PoolCopy: in when it is in everywhere. A forward pass waits on each rank for that rank's
    own copy, so `wait` is for this rank's alone."""

    def __init__(self, local: PoolCopy, remote: RemoteProgress, remove: Callable[[], None]) -> None:
        """remove: takes the adapter from the workers' pools."""
        self._local = local
        self._remote = remote
        self._remove = remove
        self._is_cancelled = False

    @property
    def num_layers_in(self) -> int:
        return min(self._local.num_layers_in, self._remote.num_layers_in)

    @property
    def remaining_bytes(self) -> int:
        if self._is_cancelled:
            return 0
        return max(self._local.remaining_bytes, self._remote.remaining_bytes)

    def wait(self, layer: int) -> None:
        self._local.wait(layer)

    def advance(self) -> int:
        return self._local.advance()

    def measured(self) -> tuple[int, float] | None:
        return self._local.measured()

    def cancel(self) -> None:
        if not self._is_cancelled:
            self._is_cancelled = True
            self._local.cancel()
            self._remove()
