"""Compiling products with quantised matrices before the first request, not in its first step."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import tuned
from kernels.quantized.matrix import QuantizedMatrix
from kernels.quantized.op import linear
from kernels.quantized.triton_linear import split_inputs, tile_tokens


def warm_up(projections: Iterable[tuple[object, torch.Tensor | None]]) -> None:
    """Compiles what steps of any number of tokens launch, or loads what an earlier process
    compiled, once for all alike. Seconds the first time ever.

    projections: matrices, of which those are taken that are quantised, and their biases.
    """
    done: set[object] = set()
    for weight, bias in projections:
        if not isinstance(weight, QuantizedMatrix):
            continue
        key = (
            *(weight.shape, weight.kind, weight.dtype, weight.num_groups, weight.scales.dtype),
            *(weight.zeros is None, weight.group_index is None, bias is None),
        )
        if key in done:
            continue
        done.add(key)
        for num_tokens in _numbers_of_tokens(weight):
            x = torch.zeros(num_tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
            linear(x, weight, bias)


def _numbers_of_tokens(weight: QuantizedMatrix) -> list[int]:
    """One for each way that `linear` has: tiles and splits are the kernels' constexprs, and more
    tiles make for fewer splits."""
    device, (outputs, inputs) = device_name(weight.device), weight.shape
    few = tuned("quantized", device, "regime", "any")["fused_tokens"]
    ways: dict[tuple[int, int], int] = {}
    for num_tokens in range(1, few + 1):
        tile = tile_tokens(num_tokens)
        settings = tuned("quantized", device, "linear", f"{tile}x{weight.bits}")
        splits, _ = split_inputs(num_tokens, outputs, inputs, settings)
        ways.setdefault((tile, splits), num_tokens)
    return [*ways.values(), few + 1]
