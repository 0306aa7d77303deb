"""A worker's part of the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dataplane.engine.device_options import cuda_pool_bytes, pick_device, pick_dtype
from dataplane.engine.warm_up import compile_adapter_kernels
from dataplane.engine.warm_up import warm_up as warm_up_forward
from dataplane.engine_options import EngineOptions
from dataplane.models.config_json import load_config
from dataplane.models.decoder import Decoder
from dataplane.models.weights import ModelWeights, load_weights
from dataplane.parallel.group import RankGroup
from dataplane.parallel.shard import Shard
from dataplane.pool.pool import PagePool
from kernels.cpu.warm_up import warm_up
from storage.machine import num_cores


@dataclass(frozen=True)
class LoadedShard:
    options: EngineOptions
    shard: Shard
    device: torch.device
    dtype: torch.dtype
    weights: ModelWeights

    @property
    def room_bytes(self) -> int:
        """That the device has for a pool; 0 on CPU, where nobody asks."""
        return cuda_pool_bytes(self.device) if self.device.type == "cuda" else 0

    def make_pool(self, num_pages: int) -> PagePool:
        pool = PagePool(
            self.shard.local,
            page_tokens=self.options.page_tokens,
            num_pages=num_pages,
            dtype=self.dtype,
            device=self.device,
        )
        if self.device.type == "cuda":
            compile_adapter_kernels(pool, self.shard.local)
        return pool

    def make_decoder(self, max_context: int, group: RankGroup, pool: PagePool) -> Decoder:
        decoder = Decoder(self.shard.local, self.weights, max_context, None, group)
        if self.device.type == "cuda":
            warm_up_forward(decoder, pool)  # as the first rank does
        return decoder


def load_shard(options: EngineOptions, rank: int) -> LoadedShard:
    """Raises: ModelError, DataPlaneError."""
    size = options.tensor_parallel
    device = pick_device(options.device, rank, size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    share_threads(options, device)
    model = load_config(Path(options.model_dir))
    shard = Shard(model, rank, size)
    dtype = pick_dtype(options.dtype, model, device)
    if device.type == "cpu":
        local = shard.local
        warm_up(dtype, local.num_heads, local.num_kv_heads, local.head_dim)
    weights = load_weights(Path(options.model_dir), model, dtype, device, shard)
    return LoadedShard(options, shard, device, dtype, weights)


def share_threads(options: EngineOptions, device: torch.device) -> None:
    """This rank's share of the threads that the engine may use."""
    if device.type == "cpu":
        num_threads = options.num_threads or num_cores()
        torch.set_num_threads(max(1, num_threads // options.tensor_parallel))
    elif options.num_threads:
        torch.set_num_threads(options.num_threads)
