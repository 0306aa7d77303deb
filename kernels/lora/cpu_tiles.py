"""The innermost loops of LoRA on CPU, as vector instructions: sums stay in registers.

Where the pool is bfloat16, rows are read as words of two elements, and float32 beside them is
spread (kernels.cpu.vectors). Every sum is made in one order, whatever the tile: what a token gets
does not depend on who else is in its block.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from kernels.cpu.vectors import (
    INT32,
    INT64,
    LANES,
    LINE,
    VECTOR,
    WORDS,
    Code,
    loop,
    vector_intrinsic,
)

COLUMNS = 2 * LINE
"""Output features of an expanding tile."""
_AHEAD_BYTES = 256
"""That weights are asked for ahead, by tiles of so few tokens that they wait for memory: the
processor itself follows too few rows at once."""
_FEW_TOKENS = 2

_ZEROS = ir.Constant(VECTOR, [0.0] * LANES)


def shrink_tile(tokens: int, ranks: int) -> Any:
    """h[ranks, tokens] = rows[ranks, :size] @ x[tokens, :size].T

    like: an array of the pool's dtype, float32 or the bits of bfloat16; rows: of A, row_stride
    elements apart; x: float32, x_stride apart, spread where the pool is bfloat16; size: whole
    LINEs, at least one. Rows, x and h are addresses, which need not be aligned.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, rows_at, row_stride, x_at, x_stride, size, h_at = arguments
        pool = _Pool(builder, signature.args[0])
        code, item = pool.code, pool.item_bytes
        rows = [_row(code, rows_at, row_stride, r, item) for r in range(ranks)]
        inputs = [_row(code, x_at, x_stride, t, 4) for t in range(tokens)]

        def products(line: Any, sums: list[Any]) -> list[Any]:
            weights: list[tuple[Any, Any]] = []
            for row in rows:
                at = code.at(row, line, LINE * item)
                if tokens <= _FEW_TOKENS:
                    code.prefetch(code.at(at, _AHEAD_BYTES, 1), LINE * item)
                weights.append(pool.line(at))
            values = [code.two_vectors(code.at(each, line, LINE * 4)) for each in inputs]
            sums = list(sums)
            for half in range(2):
                for r, weight in enumerate(weights):
                    for t, value in enumerate(values):
                        at = r * tokens + t
                        sums[at] = code.fma(weight[half], value[half], sums[at])
            return sums

        lines = builder.udiv(size, ir.Constant(INT64, LINE))
        sums = loop(builder, lines, [_ZEROS] * (ranks * tokens), products)
        for first in range(0, len(sums), LANES):
            some = sums[first : first + LANES]
            total = code.totals(some + [_ZEROS] * (LANES - len(some)))
            mask = ir.Constant(ir.VectorType(INT32, len(some)), list(range(len(some))))
            code.store(builder.shuffle_vector(total, total, mask), code.at(h_at, first, 4))
        return context.get_dummy_value()

    def tile(
        typing_context: Any,
        like: Any,
        rows: Any,
        row_stride: Any,
        x: Any,
        x_stride: Any,
        size: Any,
        h: Any,
    ) -> Any:
        return types.void(like, *[types.int64] * 6), generate

    return vector_intrinsic(tile)


def expand_tile(tokens: int) -> Any:
    """sums[tokens, COLUMNS] += h[ranks, tokens].T @ rows[ranks, :COLUMNS]

    like: as of `shrink_tile`; rows: of B, row_stride elements apart; ranks: at least 1. h and sums
    are float32; sums are spread where the pool is bfloat16.
    """
    lines, vectors = COLUMNS // LINE, COLUMNS // LANES

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, rows_at, row_stride, h_at, ranks, sums_at = arguments
        pool = _Pool(builder, signature.args[0])
        code, item = pool.code, pool.item_bytes
        row_bytes = builder.mul(row_stride, ir.Constant(INT64, item))

        def products(r: Any, sums: list[Any]) -> list[Any]:
            row = builder.add(rows_at, builder.mul(r, row_bytes))
            if tokens <= _FEW_TOKENS:
                code.prefetch(code.at(row, _AHEAD_BYTES, 1), COLUMNS * item)
            weights = [
                w for line in range(lines) for w in pool.line(code.at(row, line, LINE * item))
            ]
            factors_at = code.at(h_at, r, tokens * 4)
            sums = list(sums)
            for t in range(tokens):
                factor = code.everywhere(code.load(code.at(factors_at, t, 4), ir.FloatType()))
                for part, weight in enumerate(weights):
                    sums[t * vectors + part] = code.fma(factor, weight, sums[t * vectors + part])
            return sums

        places = [code.at(sums_at, index * LANES, 4) for index in range(tokens * vectors)]
        starts = [code.load(place, VECTOR) for place in places]
        for place, total in zip(places, loop(builder, ranks, starts, products), strict=True):
            code.store(total, place)
        return context.get_dummy_value()

    def tile(
        typing_context: Any, like: Any, rows: Any, row_stride: Any, h: Any, ranks: Any, sums: Any
    ) -> Any:
        return types.void(like, *[types.int64] * 5), generate

    return vector_intrinsic(tile)


@vector_intrinsic
def widen_line(typing_context: Any, like: Any, target: Any, source: Any) -> Any:
    """target[LINE] float32, spread where the pool is bfloat16 = source[LINE] of the pool's dtype"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pool = _Pool(builder, signature.args[0])
        for part, values in enumerate(pool.line(arguments[2])):
            pool.code.store(values, pool.code.at(arguments[1], part * LANES, 4))
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64), generate


@vector_intrinsic
def add_line(typing_context: Any, like: Any, target: Any, addend: Any) -> Any:
    """target[LINE] of the pool's dtype += addend[LINE] float32, spread where that is bfloat16"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pool = _Pool(builder, signature.args[0])
        addends = pool.code.two_vectors(arguments[2])
        both = zip(pool.line(arguments[1]), addends, strict=True)
        first, second = (builder.fadd(value, addend) for value, addend in both)
        if pool.is_bfloat16:
            pool.code.store(pool.code.rounded_words(first, second), arguments[1], align=2)
        else:
            pool.code.store(first, arguments[1])
            pool.code.store(second, pool.code.at(arguments[1], LANES, 4))
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64), generate


class _Pool:
    """Elements of the pool, as vectors of float32."""

    def __init__(self, builder: Any, like: Any) -> None:
        self.code = Code(builder)
        self.is_bfloat16 = like.dtype == types.uint16
        self.item_bytes = 2 if self.is_bfloat16 else 4

    def line(self, address: Any) -> tuple[Any, Any]:
        """LINE elements; of bfloat16 those at even places come first."""
        if self.is_bfloat16:
            return self.code.halves(self.code.load(address, WORDS, align=2))
        return self.code.two_vectors(address)


def _row(code: Code, address: Any, stride: Any, index: int, item_bytes: int) -> Any:
    elements = code.builder.mul(stride, ir.Constant(INT64, index))
    return code.at(address, elements, item_bytes)


shrink_6x4, shrink_4x4, shrink_2x8, shrink_1x8 = (
    shrink_tile(tokens, ranks) for tokens, ranks in ((6, 4), (4, 4), (2, 8), (1, 8))
)
shrink_6x1, shrink_4x1, shrink_2x1, shrink_1x1 = (shrink_tile(each, 1) for each in (6, 4, 2, 1))
expand_6, expand_4, expand_2, expand_1 = (expand_tile(each) for each in (6, 4, 2, 1))
