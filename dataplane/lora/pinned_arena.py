"""Host memory that a GPU reads by itself, taken from the system once.

Pinning memory takes the driver's locks, for milliseconds a block; torch rounds every block up to a
power of two bytes and never gives one back, so that adapters of one size leave no memory to those
of another. Here it is pinned at the start, whole, and adapters take and return parts of it.
"""

from __future__ import annotations

import bisect
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from dataplane.errors import DataPlaneError

_ALIGN_BYTES = 4096
_MIN_SLACK_BYTES = 64 << 20
_SLACK = 8  # one byte in so many, beside the bound: for what is built before it has a place


class HostBlock(NamedTuple):
    """values: contents unknown. num_bytes: that it takes of host memory."""

    values: torch.Tensor
    num_bytes: int


def pinned_block(shape: tuple[int, ...], dtype: torch.dtype) -> HostBlock:
    """From torch's own cache of pinned memory."""
    values = torch.empty(shape, dtype=dtype, pin_memory=True)
    return HostBlock(values, 1 << (max(values.nbytes, 1) - 1).bit_length())


def arena_bytes(host_cache_bytes: int) -> int:
    """Of an arena for a host tier with that bound."""
    return host_cache_bytes + max(host_cache_bytes // _SLACK, _MIN_SLACK_BYTES)


def registered(region: torch.Tensor) -> Callable[[], None]:
    """Pins it where it is, for the current device. Returns what undoes that.

    Raises: RuntimeError.
    """
    runtime: Any = torch.cuda.cudart()
    address = region.data_ptr()
    status = int(runtime.cudaHostRegister(address, region.nbytes, 0))
    if status != 0:
        raise RuntimeError(f"cudaHostRegister failed with {status}")
    return lambda: runtime.cudaHostUnregister(address)


class PinnedArena:
    """One region; a block is the smallest free extent that holds it, and its extent is free again
    when no tensor has its storage any more. Any thread may take blocks and let go of them."""

    def __init__(
        self,
        num_bytes: int,
        pin: Callable[[torch.Tensor], Callable[[], None]] = registered,
        region: torch.Tensor | None = None,
    ) -> None:
        """pin: as `registered`. region: [num_bytes] uint8, whole pages; None: new memory.

        Raises: DataPlaneError when there is no such memory.
        """
        num_bytes = -(-num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
        try:
            if region is None:
                region = torch.empty(num_bytes, dtype=torch.uint8)
            undo = pin(region)
        except RuntimeError as error:
            raise DataPlaneError(
                "HOST_MEMORY_MISSING",
                f"{num_bytes} bytes of host memory for adapters cannot be pinned: lower"
                f" --host-cache-bytes, or give the process more memory ({error})",
                {"num_bytes": str(num_bytes)},
            ) from error
        # The base of all arrays of blocks: it dies with the last of them.
        self._bytes: Any = region.numpy()
        weakref.finalize(self._bytes, undo).atexit = False
        self._lock = threading.Lock()
        # Free extents: where each begins, in order, and how long it is.
        self._begins = [0]
        self._sizes = {0: num_bytes}
        # Filled as tensors die, on any thread and at any moment: by nothing that takes a lock.
        self._returned: deque[tuple[int, int]] = deque()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> HostBlock:
        """A block; when no free extent holds it, one that torch pins."""
        return self.try_empty(shape, dtype) or pinned_block(shape, dtype)

    def try_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> HostBlock | None:
        """A block; None when no free extent holds it."""
        num_bytes = math.prod(shape) * dtype.itemsize
        size = max(-(-num_bytes // _ALIGN_BYTES), 1) * _ALIGN_BYTES
        begin = self._take(size)
        if begin is None:
            return None
        # The tensor's storage holds this very array, and nothing else does.
        part = self._bytes[begin : begin + size]
        weakref.finalize(part, self._returned.append, (begin, size)).atexit = False
        values = torch.from_numpy(part)[:num_bytes].view(dtype).view(shape)
        return HostBlock(values, size)

    def _take(self, size: int) -> int | None:
        with self._lock:
            self._take_back()
            fitting = [begin for begin, free in self._sizes.items() if free >= size]
            if not fitting:
                return None
            begin = min(fitting, key=lambda each: (self._sizes[each], each))
            free = self._sizes.pop(begin)
            index = bisect.bisect_left(self._begins, begin)
            if free == size:
                del self._begins[index]
            else:
                self._begins[index] = begin + size
                self._sizes[begin + size] = free - size
            return begin

    def _take_back(self) -> None:
        while self._returned:
            begin, size = self._returned.popleft()
            index = bisect.bisect_left(self._begins, begin)
            if index < len(self._begins) and self._begins[index] == begin + size:
                size += self._sizes.pop(self._begins.pop(index))
            if index and self._begins[index - 1] + self._sizes[self._begins[index - 1]] == begin:
                self._sizes[self._begins[index - 1]] += size
            else:
                self._begins.insert(index, begin)
                self._sizes[begin] = size
