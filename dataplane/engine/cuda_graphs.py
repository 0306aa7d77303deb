"""Capturing on a GPU, and what it takes of its memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dataplane.engine.graph_buckets import GraphBuckets
from dataplane.engine.graphs import Capture, Replay
from dataplane.models.config import ModelConfig

_GRAPH_BYTES = 16 << 20
"""Set aside for each graph's own nodes: with a stream for LoRA they took 13 MiB each on an H100,
without 2.5. What graphs took is in `StepGraphs.report`."""
_MAX_SPLITS = 128  # of a sequence's keys in decode attention
_SPLIT_TOKENS = 256
_NO_MEMORY = "out of memory"  # cudaErrorMemoryAllocation, as CUDA and ROCm describe it


def cuda_capture(device: torch.device) -> Capture:
    """All graphs share one memory pool: only one of them runs at a time, and what one leaves in it
    is not needed by the next."""
    shared = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream(device)

    def record(work: Callable[[], None]) -> Replay:
        stream.wait_stream(torch.cuda.current_stream(device))
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may allocate meanwhile.
        capture = partial(torch.cuda.graph, pool=shared, capture_error_mode="thread_local")
        # Around the capture, too: one that fails leaves its stream the current one.
        with torch.cuda.stream(stream):
            work()
            try:
                with capture(graph, stream=stream):
                    work()
            except torch.AcceleratorError as error:
                if _NO_MEMORY in str(error):  # the driver's, for the nodes; torch's has a type
                    raise torch.OutOfMemoryError(str(error)) from error
                raise
        torch.cuda.current_stream(device).wait_stream(stream)
        return graph.replay

    def used_bytes() -> int:
        free, total = torch.cuda.mem_get_info(device)
        return total - free

    return Capture(record, used_bytes)


def reserved_bytes(
    config: ModelConfig, buckets: GraphBuckets, page_tokens: int, itemsize: int
) -> int:
    """What to leave free beside the page pool for graphs of these buckets: the activations of the
    largest, the buffers at fixed addresses, and each graph's nodes."""
    size, blocks = buckets.most_rows, buckets.contexts[-1]
    logits = 2 * size * config.vocab_size * itemsize
    width = 4 * config.hidden_size + 3 * config.intermediate_size + 2 * config.q_size
    if config.experts is not None:
        width += config.experts.activation_elems(config.hidden_size, itemsize)
    splits = min(_MAX_SPLITS, -(-blocks * page_tokens // _SPLIT_TOKENS))
    attention = size * config.q_size * splits * 4
    tables = sum(buckets.contexts) * size * 4
    return (
        logits + size * width * itemsize + attention + tables + _GRAPH_BYTES * len(buckets.variants)
    )
