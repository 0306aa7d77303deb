"""Host memory for adapters that all ranks map: rank 0 packs there, each rank copies its part.

So an adapter is fetched, verified and packed once, and the host tier stays one.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable

import torch

from dataplane.lora.pinned_arena import HostBlock, PinnedArena
from storage.errors import TierError

_NAME = "chorale-adapters"


def _as_it_is(_region: torch.Tensor) -> Callable[[], None]:
    return lambda: None


class SharedArena:
    """As PinnedArena, in memory that takes no place before it is written to. Belongs to rank 0.

    pin: as PinnedArena has it; None: the device reads nothing by itself.
    """

    def __init__(
        self, num_bytes: int, pin: Callable[[torch.Tensor], Callable[[], None]] | None = None
    ) -> None:
        self.num_bytes = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.descriptor = _memory_file()
        os.ftruncate(self.descriptor, self.num_bytes)
        region = mapped(self.descriptor, self.num_bytes)
        self._begin = region.data_ptr()
        self._arena = PinnedArena(self.num_bytes, pin or _as_it_is, region)

    def block(self, shape: tuple[int, ...], dtype: torch.dtype) -> HostBlock:
        """Contents unknown. Any thread. Raises: TierError when there is no room."""
        block = self._arena.try_empty(shape, dtype)
        if block is None:
            raise TierError(
                f"the {self.num_bytes} bytes of host memory that the ranks share have no room for"
                f" an adapter of shape {shape}: raise --host-cache-bytes",
                reason="HOST_MEMORY_FULL",
                metadata={"num_bytes": str(self.num_bytes)},
            )
        return block

    def offset_of(self, values: torch.Tensor) -> int:
        """In bytes, of a block or a part of one."""
        return values.data_ptr() - self._begin

    def close(self) -> None:
        """Whoever has mapped it keeps it; nobody else can map it any more. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def mapped(descriptor: int, num_bytes: int) -> torch.Tensor:
    """[num_bytes] uint8: the memory, the same on every rank."""
    return torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=torch.uint8)


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(_NAME)
    with tempfile.TemporaryFile(prefix=_NAME) as file:
        return os.dup(file.fileno())
