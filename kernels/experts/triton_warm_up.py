"""Compiling mixtures of experts before the first request, not in its first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from kernels.experts.lora import ExpertLora
from kernels.experts.op import mix_experts
from kernels.experts.triton_products import FEW_SLOTS
from kernels.experts.weights import ExpertWeights
from kernels.lora.metadata import LoraBatchMetadata, LoraBucket, LoraGroup
from kernels.lora.tuning import lora_tiles

_ANY_LENGTH = 1 << 20


def warm_up(
    layers: Iterable[ExpertWeights], activation: str, layer_pages: torch.Tensor | None = None
) -> None:
    """Compiles what steps of any number of tokens launch, or loads what an earlier process
    compiled, once for all layers alike. Seconds the first time ever.

    layer_pages: one layer of the pool, neither read nor written; None: without adapters.
    """
    done: set[object] = set()
    for weights in layers:
        key = (weights.router.shape, weights.shared_gate is None, weights.top_k)
        if key in done:
            continue
        done.add(key)
        many = FEW_SLOTS * weights.num_experts // weights.top_k + 1
        for num_tokens in (1, many):
            x = weights.router.new_zeros(num_tokens, weights.router.shape[1])
            for delta in (None,) if weights.shared_gate is None else (None, x):
                shared = None if weights.shared_gate is None else x
                mix_experts(x, weights, activation, shared, delta)
            if layer_pages is None:
                continue
            for group in _groups(layer_pages.device):
                shared = None if weights.shared_gate is None else x
                lora = ExpertLora(layer_pages, group, group, group)
                mix_experts(x, weights, activation, shared, lora=lora)


def _groups(device: torch.device) -> Iterator[LoraGroup]:
    """In all regimes, aligned or not. Never filled: tiles are empty, and their programs end."""
    shared = lora_tiles(device).shared
    for alignment in (1, 8):
        for max_segment_tokens in (1, shared.block_tokens, _ANY_LENGTH):
            bucket = LoraBucket(1, 1, 1, 1, max_segment_tokens, alignment)
            yield LoraBatchMetadata(bucket, 1, 1, device).group(0, 0)
