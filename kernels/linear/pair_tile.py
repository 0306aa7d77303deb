"""The innermost loop of the base GEMM in pairs of bfloat16: vector instructions of AVX512-BF16."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu.vectors import INT32, INT64, LANES, VECTOR, WORDS, Code, loop, vector_intrinsic
from kernels.linear.tiling import SIZES

PANEL = 2 * LANES
"""Output features of a panel: two vectors of float32."""
PREFETCH = 32
"""Pairs ahead that weights are asked for: the processor itself does not look past a 4 KiB page."""


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


def make_tile(rows: int) -> Any:
    """sums[rows, PANEL] += x[rows, pairs] x panel[pairs, PANEL]

    x, panel: words of two bfloat16, of one input feature and the next; sums: float32. step: bytes
    from one row of x to the next; rows from `count` on are read where the last one stands. ahead:
    what is asked for meanwhile, `pace` bytes of it with each pair. A sum is made of one pair after
    the other, whatever the rows.
    """
    parts = range(0, PANEL, LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(builder)
        x, step, count, panel, sums, num_pairs, ahead, pace = arguments
        add_products = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(VECTOR, [VECTOR, _PAIRS, _PAIRS]),
            "llvm.x86.avx512bf16.dpbf16ps.512",
        )

        last = builder.sub(count, ir.Constant(INT64, 1))
        tokens: list[Any] = []
        for row in range(rows):
            number = ir.Constant(INT64, row)
            is_before = builder.icmp_signed("<", number, last)
            tokens.append(
                builder.add(x, builder.mul(builder.select(is_before, number, last), step))
            )

        def products(k: Any, totals: list[Any]) -> list[Any]:
            row_at = code.at(panel, k, PANEL * 4)
            code.prefetch(code.at(row_at, PREFETCH, PANEL * 4), PANEL * 4, near=True)
            code.prefetch(builder.add(ahead, builder.mul(k, pace)), 4)
            weights = [
                builder.bitcast(code.load(code.at(row_at, part, 4), WORDS), _PAIRS)
                for part in parts
            ]
            sums_now: list[Any] = []
            for row in range(rows):
                word = code.load(code.at(tokens[row], k, 4), INT32)
                token = builder.bitcast(code.everywhere(word), _PAIRS)
                of_row = totals[len(sums_now) :][: len(weights)]
                sums_now += [
                    builder.call(add_products, [total, token, each])
                    for each, total in zip(weights, of_row, strict=True)
                ]
            return sums_now

        targets = [code.at(sums, index * LANES, 4) for index in range(rows * len(parts))]
        starts = [code.load(each, VECTOR) for each in targets]
        totals = loop(builder, num_pairs, starts, products)
        for target, total in zip(targets, totals, strict=True):
            code.store(total, target)
        return context.get_dummy_value()

    def tile(
        typing_context: Any,
        x: Any,
        step: Any,
        count: Any,
        panel: Any,
        sums: Any,
        num_pairs: Any,
        ahead: Any,
        pace: Any,
    ) -> Any:
        address, number = types.intp, types.int64
        numbers = (address, number, number, address, address, number, address, number)
        return types.void(*numbers), generate

    return vector_intrinsic(tile)


tile_1, tile_2, tile_4, tile_6, tile_8, tile_12 = (make_tile(rows) for rows in SIZES)
