"""Compiling the LoRA kernels before the first request, not in its first step."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from kernels.lora.extras import AFFINE_ROW, lora_affine
from kernels.lora.metadata import LoraBatchMetadata, LoraBucket
from kernels.lora.op import lora_apply, lora_shrink
from kernels.lora.tuning import lora_tiles

_ANY_LENGTH = 1 << 20


def warm_up(layer_pages: torch.Tensor, shapes: Iterable[tuple[int, int]]) -> None:
    """Compiles what steps over projection groups of these shapes launch, or loads what an earlier
    process compiled: in all regimes, aligned or not. Seconds the first time ever.

    layer_pages: one layer of the pool, on its device; it is neither read nor written.
    shapes: (in_features, out_features).
    """
    shared = lora_tiles(layer_pages.device).shared
    for alignment in (1, 8):
        for max_segment_tokens in (1, shared.block_tokens, _ANY_LENGTH):
            bucket = LoraBucket(1, 1, 1, 1, max_segment_tokens, alignment)
            # Never filled: its one tile is empty, and each program ends at once.
            lora = LoraBatchMetadata(bucket, 1, 1, layer_pages.device).group(0, 0)
            affine = LoraBatchMetadata(bucket, 1, 1, layer_pages.device, AFFINE_ROW).group(0, 0)
            for in_features, out_features in shapes:
                x = layer_pages.new_zeros(1, in_features)
                y = layer_pages.new_zeros(1, out_features)
                lora_apply(y, x, layer_pages, lora)
                lora_shrink(x, layer_pages, lora, lora_shrink(x, layer_pages, lora))
                lora_affine(y, layer_pages, affine)
