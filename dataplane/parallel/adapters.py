"""An adapter cut to match the base model, one part for each rank.

Where the base's outputs are cut (q, k, v, gate, up), B is cut likewise and A is whole on every
rank. Where its inputs are cut (o, down), A is, and B is whole: with h the rank-sized intermediate,

    sum over ranks of (W_i x_i + B A_i x_i)  =  W x + B (sum of h_i)

so the intermediates' sum is a part of the one that the base makes anyway, and adapters need none of
their own. S-LoRA (Sheng et al. 2023, section 6) cuts A and B both and adds up or gathers h before
B: that takes less memory, and four more rounds of the ranks in every layer, each of which takes as
long as one of the base's while steps are small.
What lies outside the layers is whole on every rank; the first one alone applies heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import torch

from dataplane.errors import AdapterRefusedError
from dataplane.lora.layout import HostAdapter, pack
from dataplane.lora.pinned_arena import HostBlock
from dataplane.models.weights import ModelWeights
from dataplane.parallel.arena import SharedArena
from dataplane.parallel.shard import Shard
from storage.adapter.manifest import AdapterManifest, LoraModule, ParsedAdapter


def pack_shards(
    shards: Sequence[Shard],
    base: ModelWeights,
    adapter: ParsedAdapter,
    arena: SharedArena,
    *,
    page_elems: int,
    dtype: torch.dtype,
    pool_pages: int | None = None,
) -> HostAdapter:
    """As `dataplane.lora.layout.pack`, for every rank: what is returned has rank 0's pages, behind
    which those of the others lie. All have one layout.

    base: of rank 0. page_elems: of a shard's pool.
    Raises: as `pack`; AdapterRefusedError for DoRA and biases; TierError when there is no room.
    """
    _check(adapter.manifest, len(shards))
    if base.read_head is not None:  # once for all ranks
        base = replace(base, read_head=cache(base.read_head))
    memory = _Memory(arena, len(shards))
    packed = [
        pack(
            shard.local,
            base,
            adapter,
            page_elems=page_elems,
            dtype=dtype,
            pool_pages=pool_pages,
            block=memory.next_part,
            cut=_Cut(shard),
        )
        for shard in shards
    ]
    offset = arena.offset_of(packed[0].pages)
    return replace(packed[0], num_ranks=len(shards), shared_offset=offset)


class _Memory:
    """Of one adapter: parts of equal size, one after the other."""

    def __init__(self, arena: SharedArena, num_parts: int) -> None:
        self._arena = arena
        self._num_parts = num_parts
        self._parts: Iterator[torch.Tensor] | None = None
        self._block_bytes = 0

    def next_part(self, shape: tuple[int, ...], dtype: torch.dtype) -> HostBlock:
        if self._parts is None:
            whole, self._block_bytes = self._arena.block((self._num_parts, *shape), dtype)
            self._parts = iter(whole)
        return HostBlock(next(self._parts), self._block_bytes)


class _Cut:
    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def __call__(
        self, module: LoraModule, a: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if module.layer is None:
            return a, b
        rows = self._shard.rows(module.module)
        return a[:, self._shard.columns(module.module)], torch.cat([b[each] for each in rows])


def _check(manifest: AdapterManifest, size: int) -> None:
    features = {
        "use_dora": any(module.magnitude for module in manifest.modules),
        "lora_bias": any(module.lora_bias for module in manifest.modules),
        "bias": any(bias.layer is not None for bias in manifest.biases),  # a head's is not cut
    }
    for field, is_used in features.items():
        if is_used:
            raise AdapterRefusedError(
                "TENSOR_PARALLEL_ADAPTER",
                f"the adapter was trained with {field}, which is not served with"
                f" --tensor-parallel {size}: use a data plane on one device, or train it without",
                {"field": field, "tensor_parallel": str(size), "digest": manifest.digest},
            )
