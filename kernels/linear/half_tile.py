"""The innermost loop of the base GEMM in float16, as vector instructions (AVX512-FP16).

Such a product takes half the time of float32's, but a sum of float16 has 11 bits. So sums are kept
in registers for RUN inputs only, and then added to float32's: what that loses is about half of what
rounding the result to bfloat16 does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu.vectors import INT32, INT64, VECTOR, Code, loop, vector_intrinsic
from kernels.linear.tiling import SIZES

LANES = 32
PANEL = 2 * LANES
"""Output features of a panel: two vectors of float16."""
RUN = 32
"""Inputs whose products are added up in float16. The length decides what is lost: with 64 it is 22%
more than by rounding to bfloat16 alone, with 32 it is 12%."""
PREFETCH = 32
"""Inputs ahead that weights are asked for: the processor itself does not look past a 4 KiB page."""

_HALVES = ir.VectorType(ir.HalfType(), LANES)
_ROW_BYTES = PANEL * 2
_LINE_BYTES = 64


def make_tile(rows: int) -> Any:
    """sums[rows, PANEL] += x @ panel[in_features, PANEL]

    x: [runs, rows, RUN]; each float16 twice, side by side, so that one load fills a vector with it.
    panel: float16, sums: float32.
    """
    parts = range(0, PANEL, LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(builder)
        x, panel, sums, in_features = arguments
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_HALVES, [_HALVES] * 3), f"llvm.fma.v{LANES}f16"
        )
        zeros = [ir.Constant(_HALVES, [0.0] * LANES)] * (rows * len(parts))
        kept = cgutils.alloca_once(builder, ir.ArrayType(_HALVES, len(zeros)))
        kept.align = _LINE_BYTES
        kept_at = builder.ptrtoint(kept, INT64)

        def run(index: Any, none: list[Any]) -> list[Any]:
            x_run = code.at(x, index, rows * RUN * 4)
            panel_run = code.at(panel, index, RUN * _ROW_BYTES)
            left = builder.sub(in_features, builder.mul(index, ir.Constant(INT64, RUN)))
            is_last = builder.icmp_signed("<", left, ir.Constant(INT64, RUN))
            size = builder.select(is_last, left, ir.Constant(INT64, RUN))

            def products(k: Any, totals: list[Any]) -> list[Any]:
                weights_at = code.at(panel_run, k, _ROW_BYTES)
                code.prefetch(code.at(weights_at, PREFETCH, _ROW_BYTES), _ROW_BYTES, near=True)
                weights = [code.load(code.at(weights_at, part, 2), _HALVES, 2) for part in parts]
                sums_now: list[Any] = []
                for row in range(rows):
                    token = _everywhere(code, code.at(code.at(x_run, row, RUN * 4), k, 4))
                    of_row = totals[len(sums_now) :][: len(weights)]
                    sums_now += [
                        builder.call(fma, [token, each, total])
                        for each, total in zip(weights, of_row, strict=True)
                    ]
                return sums_now

            _add_to(code, sums, loop(builder, size, zeros, products), kept_at, in_features)
            return none

        whole = builder.add(in_features, ir.Constant(INT64, RUN - 1))
        loop(builder, builder.sdiv(whole, ir.Constant(INT64, RUN)), [], run)
        return context.get_dummy_value()

    def tile(typing_context: Any, x: Any, panel: Any, sums: Any, in_features: Any) -> Any:
        address = types.intp
        return types.void(address, address, address, types.int64), generate

    return vector_intrinsic(tile)


def _everywhere(code: Code, address: Any) -> Any:
    """A vector of the two equal float16 that stand there."""
    return code.builder.bitcast(code.everywhere(code.load(address, INT32)), _HALVES)


def _add_to(code: Code, sums: Any, totals: list[Any], kept: Any, in_features: Any) -> None:
    """sums float32 += totals, by way of memory: what is widened on loading saves the shuffles that
    halves of registers take. kept: room for them."""
    builder, half = code.builder, LANES // 2
    halves = ir.VectorType(ir.HalfType(), half)
    for index, total in enumerate(totals):
        code.store(total, code.at(kept, index, _LINE_BYTES), align=_LINE_BYTES)
    # Adds 0, which the compiler cannot know: it would unroll the loop, and shuffle registers again.
    nothing = builder.lshr(in_features, ir.Constant(INT64, 62))
    count = builder.add(nothing, ir.Constant(INT64, 2 * len(totals)))

    def add(index: Any, none: list[Any]) -> list[Any]:
        some = code.load(code.at(kept, index, half * 2), halves, align=half * 2)
        at = code.at(sums, index, half * 4)
        code.store(builder.fadd(code.load(at, VECTOR), builder.fpext(some, VECTOR)), at)
        return none

    loop(builder, count, [], add)


tile_1, tile_2, tile_4, tile_6, tile_8, tile_12 = (make_tile(rows) for rows in SIZES)
