"""What an engine of several ranks has beside the one of a single rank."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dataplane.engine.memory_sizes import MemorySizes
from dataplane.engine_options import EngineOptions
from dataplane.lora.layout import HostAdapter
from dataplane.lora.pinned_arena import arena_bytes, registered
from dataplane.models.config import ModelConfig
from dataplane.models.weights import ModelWeights
from dataplane.parallel.adapters import pack_shards
from dataplane.parallel.arena import SharedArena
from dataplane.parallel.group import RankGroup
from dataplane.parallel.model import share_threads
from dataplane.parallel.ranks import Ranks
from dataplane.parallel.shard import Shard
from dataplane.pool.pool import PagePool
from storage.adapter.manifest import ParsedAdapter


class FirstRank:
    """Rank 0's shard, the other ranks, and the memory that all read adapters from. `close` at the
    end, or `kill`. Made on the main thread."""

    def __init__(
        self,
        options: EngineOptions,
        sizes: MemorySizes,
        model: ModelConfig,
        device: torch.device,
        on_lost: Callable[[str], None],
    ) -> None:
        """Starts the workers, which load meanwhile. on_lost: as Ranks has it.

        Raises: UnsupportedModelError when the model cannot be cut so; DataPlaneError, OSError.
        """
        size = options.tensor_parallel
        self._device = device
        self._shards = [Shard(model, rank, size) for rank in range(size)]
        share_threads(options, device)
        num_bytes = arena_bytes(sizes.host_bytes)
        if device.type == "cuda":
            torch.cuda.set_device(device)
            self._arena = SharedArena(num_bytes, registered)
        else:  # what has arrived and waits for pages comes on top, by its bound
            self._arena = SharedArena(num_bytes + sizes.pool_bytes)
        try:
            self._ranks = Ranks(options, self._arena.descriptor, self._arena.num_bytes, on_lost)
        finally:
            self._arena.close()  # workers have descriptors of their own

    @property
    def shard(self) -> Shard:
        return self._shards[0]

    @property
    def pids(self) -> list[int]:
        """Of the workers, in order of rank."""
        return self._ranks.pids

    @property
    def num_copies(self) -> int:
        """Adapters whose host memory workers may still read."""
        return self._ranks.num_copies

    def pool_bytes(self, options: EngineOptions, room_bytes: int) -> int:
        """Of all ranks' pools together, once all have loaded. room_bytes: for this rank's, or for
        all where the options say so. Raises: DataPlaneError when a worker cannot load."""
        rooms = self._ranks.wait_loaded()
        if options.pool_bytes or self._device.type != "cuda":
            return room_bytes
        return min(room_bytes, *rooms) * len(self._shards)

    def meet(self, pool: PagePool, max_context: int) -> RankGroup:
        """From now on the workers' pools follow this one. Raises: DataPlaneError."""
        group = self._ranks.serve(pool.num_pages, max_context, self._device)
        pool.mirror = self._ranks
        return group

    def pack(self, weights: ModelWeights, adapter: ParsedAdapter, pool: PagePool) -> HostAdapter:
        """Raises: as `pack_shards`. Any thread."""
        return pack_shards(
            self._shards,
            weights,
            adapter,
            self._arena,
            page_elems=pool.page_elems,
            dtype=pool.data.dtype,
            pool_pages=pool.num_pages,
        )

    def close(self) -> None:
        """Idempotent."""
        self._ranks.close()

    def kill(self) -> None:
        """Idempotent."""
        self._ranks.kill()
