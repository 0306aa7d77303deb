"""Storing a tile's sums as they are."""

from __future__ import annotations

from typing import Any

from kernels.cpu.compile import compiled
from kernels.cpu.floats import load, store


@compiled
def store_tile(
    sums: Any, rows: Any, y: Any, first: Any, panel: Any, all_bias: Any, has_bias: Any
) -> None:  # pragma: no cover - compiled
    """sums: [rows, panel's outputs]; y: [tokens, outputs]; all_bias: of all outputs."""
    width = sums.shape[1]
    bias = all_bias[panel * width : (panel + 1) * width]
    for row in range(rows):
        target = y[first + row, panel * width : (panel + 1) * width]
        if has_bias:
            # Rounded before, as a bias that is added to what was stored.
            for k in range(width):
                store(target, k, sums[row, k])
            for k in range(width):
                store(target, k, load(target[k]) + load(bias[k]))
        else:
            for k in range(width):
                store(target, k, sums[row, k])
