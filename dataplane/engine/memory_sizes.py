"""How much memory the page pool and the adapters in host memory take where the options do not say:
no more than a container's limit leaves."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from dataplane.engine_options import EngineOptions
from dataplane.models.config import ModelConfig
from dataplane.models.shapes import layer_groups
from storage.machine import memory_bytes

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 30
_LEAST_BYTES = 64 << 20
_PROCESS_BYTES = 512 << 20  # the frontend, or one rank, without weights, pool and adapters


class MemorySizes(NamedTuple):
    pool_bytes: int  # 0: on a GPU, what is free there once the weights are loaded
    host_bytes: int


def memory_sizes(
    options: EngineOptions,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    limit_bytes: int | None = None,
) -> MemorySizes:
    """limit_bytes: of memory that this process may use; left out, what the machine says."""
    limit = limit_bytes or memory_bytes()
    on_cpu = device.type == "cpu"
    fixed = (1 + options.tensor_parallel) * _PROCESS_BYTES
    if on_cpu:
        fixed += _num_weights(config) * dtype.itemsize
    given = options.pool_bytes * on_cpu + (options.host_cache_bytes or 0)
    open_sizes = int(on_cpu and not options.pool_bytes) + int(options.host_cache_bytes is None)
    share = _MOST_BYTES
    if limit is not None and open_sizes:
        share = min(_MOST_BYTES, max(_LEAST_BYTES, (limit - fixed - given) // open_sizes))
    pool = options.pool_bytes or (share if on_cpu else 0)
    host = share if options.host_cache_bytes is None else options.host_cache_bytes
    wanted = fixed + host + pool * on_cpu
    if limit is not None and wanted > limit:
        log.warning(
            "the model, %s MiB of pages and %s MiB of adapters in host memory may come to %s MiB;"
            " there are %s MiB for this data plane: give it more, or lower --pool-bytes and"
            " --host-cache-bytes",
            *(nbytes >> 20 for nbytes in (pool * on_cpu, host, wanted, limit)),
        )
    return MemorySizes(pool, host)


def _num_weights(config: ModelConfig) -> int:
    """Without norms and biases, which are few."""
    projections = sum(
        group.in_features * group.out_features
        for layer in range(config.num_layers)
        for group in layer_groups(config, layer).values()
    )
    experts = 0 if config.experts is None else config.experts.num_weights(config.hidden_size)
    vocabulary = config.vocab_size * config.hidden_size
    return projections + experts + vocabulary * (1 if config.tie_word_embeddings else 2)
