"""Which captured steps an engine is to have."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from dataplane.engine.cuda_graphs import cuda_capture, reserved_bytes
from dataplane.engine.graph_buckets import GraphBuckets
from dataplane.engine.graphs import Capture
from dataplane.engine_options import EngineOptions
from dataplane.errors import DataPlaneError
from dataplane.models.config import ModelConfig

log = logging.getLogger(__name__)


class GraphSetup(NamedTuple):
    """Which graphs there are to be, and how they are captured."""

    buckets: GraphBuckets
    capture: Capture

    def reserved_bytes(self, config: ModelConfig, page_tokens: int, dtype: torch.dtype) -> int:
        """What they take beside the pool, by assumption."""
        return reserved_bytes(config, self.buckets, page_tokens, dtype.itemsize)


def graph_setup(
    options: EngineOptions, device: torch.device, max_context: int
) -> GraphSetup | None:
    """None: every step runs eagerly.

    Raises: DataPlaneError for graphs where there is no GPU to capture them.
    """
    wanted = device.type == "cuda" if options.cuda_graphs is None else options.cuda_graphs
    if not wanted:
        return None
    if options.tensor_parallel > 1 and options.cuda_graphs is None:
        log.warning("--tensor-parallel %d: steps run eagerly", options.tensor_parallel)
        return None
    if options.tensor_parallel > 1:
        raise DataPlaneError(
            "GRAPHS_NEED_ONE_DEVICE",
            f"--cuda-graphs with --tensor-parallel {options.tensor_parallel}: steps of several"
            " devices are not captured; use --no-cuda-graphs",
            {"tensor_parallel": str(options.tensor_parallel)},
        )
    if device.type != "cuda":
        raise DataPlaneError(
            "GRAPHS_NEED_CUDA",
            f"--cuda-graphs on device {device}: only a GPU has them; leave the option out, or use"
            " --no-cuda-graphs",
            {"device": str(device)},
        )
    buckets = GraphBuckets.of(
        options.max_running, max_context, options.page_tokens, options.max_batch_tokens
    )
    return GraphSetup(buckets, cuda_capture(device))
