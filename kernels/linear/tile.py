"""The innermost loop of the base GEMM on CPU, as vector instructions.

numba's own loops keep their sums in memory between inputs; here they stay in registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from kernels.cpu.vectors import FLOAT, LANES, VECTOR, WORDS, Code, loop, vector_intrinsic
from kernels.linear.tiling import SIZES

PANEL = 2 * LANES
"""Output features of a panel: two vectors of float32."""
PREFETCH = 64
"""Inputs ahead that weights are asked for: the processor itself does not look past a 4 KiB page."""

_HALVES = ir.VectorType(ir.IntType(16), LANES)


def make_tile(rows: int, is_wide: bool = False) -> Any:
    """sums[rows, PANEL] = x[in_features, rows].T @ panel[in_features, PANEL], held in registers.

    x and sums are float32, and so is the panel if `is_wide`; else it is bfloat16. Where it is wide,
    products are added to the sums that are there.
    """
    parts = range(0, PANEL, LANES)
    item_bytes = 4 if is_wide else 2

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(builder)
        x, panel, sums, in_features = arguments

        def weights_of(k: Any) -> list[Any]:
            row = code.at(panel, k, PANEL * item_bytes)
            if is_wide:  # just made
                return [code.load(code.at(row, part, 4), VECTOR) for part in parts]
            ahead = code.at(row, PREFETCH * PANEL, item_bytes)
            code.prefetch(ahead, PANEL * item_bytes, near=True)
            return [_widened(code, code.at(row, part, 2)) for part in parts]

        def products(k: Any, totals: list[Any]) -> list[Any]:
            weights = weights_of(k)
            sums_now: list[Any] = []
            for row in range(rows):
                at = code.at(code.at(x, k, rows * 4), row, 4)
                token = code.everywhere(code.load(at, FLOAT))
                of_row = totals[len(sums_now) :][: len(weights)]
                sums_now += [
                    code.fma(token, each, total)
                    for each, total in zip(weights, of_row, strict=True)
                ]
            return sums_now

        targets = [code.at(sums, index * LANES, 4) for index in range(rows * len(parts))]
        zeros = ir.Constant(VECTOR, [0.0] * LANES)
        starts = [code.load(each, VECTOR) if is_wide else zeros for each in targets]
        totals = loop(builder, in_features, starts, products)
        for target, total in zip(targets, totals, strict=True):
            code.store(total, target)
        return context.get_dummy_value()

    def tile(typing_context: Any, x: Any, panel: Any, sums: Any, in_features: Any) -> Any:
        address = types.intp
        return types.void(address, address, address, types.int64), generate

    return vector_intrinsic(tile)


def _widened(code: Code, address: Any) -> Any:
    """LANES bfloat16, in order, as float32."""
    bits = code.builder.zext(code.load(address, _HALVES, align=2), WORDS)
    shifted = code.builder.shl(bits, ir.Constant(WORDS, [16] * LANES))
    return code.builder.bitcast(shifted, VECTOR)


tile_1, tile_2, tile_4, tile_6, tile_8, tile_12 = (make_tile(rows) for rows in SIZES)
wide_tile_6, wide_tile_8, wide_tile_12 = (make_tile(rows, is_wide=True) for rows in (6, 8, 12))
