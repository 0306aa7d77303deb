"""Storing a tile's sums as they are."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from kernels.cpu.vectors import HALVES, INT64, LANES, VECTOR, Code, loop, vector_intrinsic


@vector_intrinsic
def store_tile(
    typing_context: Any, sums: Any, y: Any, step: Any, rows: Any, bias: Any, width: Any
) -> Any:
    """y[rows, width] bfloat16 = sums[rows, width] float32, rounded to nearest even, and then the
    bias added to what was rounded.

    sums, y, bias: addresses, of bias 0 where there is none. step: bytes from one row of y to the
    next. rows: at least 1. width: a literal, a multiple of LANES.
    """
    size = width.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(builder)
        sums, y, step, rows, bias, _ = arguments

        def store_rows(addends: list[Any]) -> None:
            def store_row(row: Any, _: list[Any]) -> list[Any]:
                target = builder.add(y, builder.mul(row, step))
                for index, start in enumerate(range(0, size, LANES)):
                    source = code.at(code.at(sums, row, size * 4), start, 4)
                    value = code.rounded(code.load(source, VECTOR))
                    if addends:
                        value = code.rounded(builder.fadd(code.widened(value), addends[index]))
                    code.store(value, code.at(target, start, 2), align=2)
                return []

            loop(builder, rows, [], store_row)

        has_bias = builder.icmp_signed("!=", bias, ir.Constant(INT64, 0))
        with builder.if_else(has_bias) as (then, otherwise):
            with then:
                store_rows(
                    [
                        code.widened(code.load(code.at(bias, start, 2), HALVES, align=2))
                        for start in range(0, size, LANES)
                    ]
                )
            with otherwise:
                store_rows([])
        return context.get_dummy_value()

    address, number = types.intp, types.int64
    return types.void(address, address, number, number, address, width), generate
