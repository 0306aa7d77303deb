"""Rows turned into columns in registers, for the tiles that prefill attention multiplies with: as
loops, this takes about as long as the products."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu.vectors import (
    INT32,
    INT64,
    LANES,
    LINE,
    VECTOR,
    WORDS,
    Code,
    vector_intrinsic,
)


@vector_intrinsic
def turn_rows(
    typing_context: Any, target: Any, rows: Any, factor: Any, head_dim: Any, num_rows: Any
) -> Any:
    """target[head_dim, num_rows] float32 = source[num_rows, head_dim].T * factor

    rows: [num_rows] addresses int64; at each is a row of source, bfloat16, of whole LINEs.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, count = Code(builder), num_rows.literal_value
        target, rows, factor = arguments[:3]
        factors = code.everywhere(factor)
        for first in range(0, count, LANES):
            num_columns = min(LANES, count - first)
            starts = [
                code.load(code.at(rows, first + row, 8), INT64, align=8)
                for row in range(num_columns)
            ]
            num_lines = ir.Constant(INT64, head_dim.literal_value // LINE)
            with cgutils.for_range(builder, num_lines) as loop:
                words = [code.load(code.at(at, loop.index, 2 * LINE), WORDS, 2) for at in starts]
                line_at = code.at(target, loop.index, LINE * count * 4)
                for pair, column in enumerate(_turned(code, words)):
                    for odd, half in enumerate(code.halves(column)):
                        at = code.at(line_at, (2 * pair + odd) * count + first, 4)
                        _store_first(code, builder.fmul(half, factors), num_columns, at)
        return context.get_dummy_value()

    told = (types.intp, types.intp, types.float32, head_dim, num_rows)
    return types.void(*told), generate


@vector_intrinsic
def turn_tile(
    typing_context: Any, target: Any, source: Any, num_rows: Any, num_columns: Any
) -> Any:
    """target[num_columns, num_rows] = source[num_rows, num_columns].T, float32

    num_rows: LANES at most; num_columns: a multiple of LANES
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, rows, columns = Code(builder), num_rows.literal_value, num_columns.literal_value
        for first in range(0, columns, LANES):
            vectors = [
                code.load(code.at(arguments[1], row * columns + first, 4), VECTOR)
                for row in range(rows)
            ]
            for index, column in enumerate(_turned(code, vectors)):
                at = code.at(arguments[0], (first + index) * rows, 4)
                _store_first(code, column, rows, at)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, num_rows, num_columns), generate


def _turned(code: Code, vectors: list[Any]) -> list[Any]:
    """LANES vectors whose lane i is vector i's; those of missing vectors are undefined."""
    kind = vectors[0].type
    missing = [ir.Constant(kind, ir.Undefined)] * (LANES - len(vectors))
    vectors, distance = [*vectors, *missing], LANES
    while distance > 1:
        # Of blocks of this size, the upper right one and the lower left one change places.
        distance //= 2
        for index in range(LANES):
            if not index & distance:
                a, b = vectors[index], vectors[index + distance]
                low = [i + LANES - distance if i & distance else i for i in range(LANES)]
                vectors[index] = code.shuffled(a, b, low)
                vectors[index + distance] = code.shuffled(a, b, [i + distance for i in low])
    return vectors


def _store_first(code: Code, vector: Any, count: int, address: Any) -> None:
    """The first `count` lanes."""
    mask = ir.Constant(ir.VectorType(INT32, count), list(range(count)))
    code.store(code.builder.shuffle_vector(vector, vector, mask), address)
