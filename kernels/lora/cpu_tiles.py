"""The innermost loops of LoRA on CPU, as vector instructions: sums stay in registers.

Every sum is made in one order, whatever the tile: what a token gets does not depend on who else is
in its block.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
COLUMNS = 4 * LANES
"""Output features of an expanding tile."""
_AHEAD = 128
"""Elements of a row that weights are asked for ahead, by tiles of so few tokens that they wait for
memory: the processor itself follows too few rows at once."""
_FEW_TOKENS = 2

_intrinsic: Any = intrinsic  # its stub keeps the typing context among the parameters
_INT32, _INT64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_NONE = ir.Constant(_VECTOR, ir.Undefined)
_ZEROS = ir.Constant(_VECTOR, [0.0] * LANES)


def shrink_tile(tokens: int, ranks: int) -> Any:
    """h[ranks, tokens] = rows[ranks, :size] @ x[tokens, :size].T

    like: an array of the pool's dtype, float32 or the bits of bfloat16; rows: of A, row_stride
    elements apart; x: float32, x_stride apart; size: whole vectors, at least one. Rows, x and h are
    addresses, which need not be aligned.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, rows_at, row_stride, x_at, x_stride, size, h_at = arguments
        is_bfloat16 = signature.args[0].dtype == types.uint16
        rows = [_row(builder, rows_at, row_stride, r, is_bfloat16) for r in range(ranks)]
        inputs = [_row(builder, x_at, x_stride, t, False) for t in range(tokens)]

        def products(k: Any, totals: list[Any]) -> list[Any]:
            at = builder.mul(k, ir.Constant(_INT64, LANES))
            for row in rows if tokens <= _FEW_TOKENS else ():
                _prefetch(builder, row, builder.add(at, ir.Constant(_INT64, _AHEAD)))
            weights = [_load(builder, row, at, is_bfloat16) for row in rows]
            values = [_load(builder, each, at, False) for each in inputs]
            fma = _fma(builder)
            return [
                builder.call(fma, [weight, value, totals[r * tokens + t]])
                for r, weight in enumerate(weights)
                for t, value in enumerate(values)
            ]

        steps = builder.udiv(size, ir.Constant(_INT64, LANES))
        sums = _loop(builder, steps, [_ZEROS] * (ranks * tokens), products)
        h = builder.inttoptr(h_at, ir.PointerType(_FLOAT))
        for index, total in enumerate(sums):
            target = builder.gep(h, [ir.Constant(_INT64, index)])
            builder.store(_added_up(builder, total), target, align=4)
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

    return _intrinsic(tile)


def expand_tile(tokens: int) -> Any:
    """sums[tokens, COLUMNS] += h[ranks, tokens].T @ rows[ranks, :COLUMNS]

    like: as of `shrink_tile`; rows: of B, row_stride elements apart; ranks: at least 1. h and sums
    are float32.
    """
    vectors = COLUMNS // LANES

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, rows_at, row_stride, h_at, ranks, sums_at = arguments
        is_bfloat16 = signature.args[0].dtype == types.uint16
        element = ir.IntType(16) if is_bfloat16 else _FLOAT
        rows = builder.inttoptr(rows_at, ir.PointerType(element))
        h = builder.inttoptr(h_at, ir.PointerType(_FLOAT))
        sums = builder.inttoptr(sums_at, ir.PointerType(_FLOAT))
        places = [ir.Constant(_INT64, index * LANES) for index in range(tokens * vectors)]

        def products(r: Any, totals: list[Any]) -> list[Any]:
            row = builder.gep(rows, [builder.mul(r, row_stride)])
            for part in range(0, vectors, 2) if tokens <= _FEW_TOKENS else ():
                _prefetch(builder, row, ir.Constant(_INT64, _AHEAD + part * LANES))
            weights = [_load(builder, row, places[part], is_bfloat16) for part in range(vectors)]
            first = builder.mul(r, ir.Constant(_INT64, tokens))
            fma, now = _fma(builder), []
            for t in range(tokens):
                at = builder.gep(h, [builder.add(first, ir.Constant(_INT64, t))])
                factor = _everywhere(builder, builder.load(at, align=4))
                now += [
                    builder.call(fma, [factor, weight, totals[t * vectors + part]])
                    for part, weight in enumerate(weights)
                ]
            return now

        starts = [_load(builder, sums, place, False) for place in places]
        totals = _loop(builder, ranks, starts, products)
        for place, total in zip(places, totals, strict=True):
            pointer = builder.bitcast(builder.gep(sums, [place]), ir.PointerType(_VECTOR))
            builder.store(total, pointer, align=4)
        return context.get_dummy_value()

    def tile(
        typing_context: Any, like: Any, rows: Any, row_stride: Any, h: Any, ranks: Any, sums: Any
    ) -> Any:
        return types.void(like, *[types.int64] * 5), generate

    return _intrinsic(tile)


def _loop(builder: Any, count: Any, starts: list[Any], body: Any) -> list[Any]:
    """What body(index, totals) makes of the totals, `count` times, at least once."""
    before = builder.block
    loop, after = builder.append_basic_block("products"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(_INT64)
    index.add_incoming(ir.Constant(_INT64, 0), before)
    totals = [builder.phi(_VECTOR) for _ in starts]
    now = body(index, totals)
    for total, start, total_now in zip(totals, starts, now, strict=True):
        total.add_incoming(start, before)
        total.add_incoming(total_now, loop)
    following = builder.add(index, ir.Constant(_INT64, 1))
    index.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return now


def _row(builder: Any, address: Any, stride: Any, index: int, is_bfloat16: bool) -> Any:
    element = ir.IntType(16) if is_bfloat16 else _FLOAT
    pointer = builder.inttoptr(address, ir.PointerType(element))
    return builder.gep(pointer, [builder.mul(stride, ir.Constant(_INT64, index))])


def _load(builder: Any, row: Any, at: Any, is_bfloat16: bool) -> Any:
    """LANES elements as float32."""
    pointer = builder.gep(row, [at])
    if not is_bfloat16:
        return builder.load(builder.bitcast(pointer, ir.PointerType(_VECTOR)), align=4)
    words = ir.VectorType(_INT32, LANES)
    bits = builder.bitcast(pointer, ir.PointerType(ir.VectorType(ir.IntType(16), LANES)))
    wide = builder.zext(builder.load(bits, align=2), words)
    return builder.bitcast(builder.shl(wide, ir.Constant(words, [16] * LANES)), _VECTOR)


def _prefetch(builder: Any, row: Any, at: Any) -> None:
    bytes_ = ir.PointerType(ir.IntType(8))
    kind = ir.FunctionType(ir.VoidType(), [bytes_, _INT32, _INT32, _INT32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    to_read, keep, data = (ir.Constant(_INT32, value) for value in (0, 3, 1))
    builder.call(prefetch, [builder.bitcast(builder.gep(row, [at]), bytes_), to_read, keep, data])


def _everywhere(builder: Any, value: Any) -> Any:
    first = builder.insert_element(_NONE, value, ir.Constant(_INT32, 0))
    mask = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, _NONE, mask)


def _added_up(builder: Any, vector: Any) -> Any:
    """Halves onto halves."""
    width = LANES
    while width > 1:
        width //= 2
        lanes = [*range(width, 2 * width), *[0] * (LANES - width)]
        mask = ir.Constant(ir.VectorType(_INT32, LANES), lanes)
        vector = builder.fadd(vector, builder.shuffle_vector(vector, _NONE, mask))
    return builder.extract_element(vector, ir.Constant(_INT32, 0))


def _fma(builder: Any) -> Any:
    return cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32"
    )


shrink_6x4, shrink_4x4, shrink_2x8, shrink_1x8 = (
    shrink_tile(tokens, ranks) for tokens, ranks in ((6, 4), (4, 4), (2, 8), (1, 8))
)
shrink_6x1, shrink_4x1, shrink_2x1, shrink_1x1 = (shrink_tile(each, 1) for each in (6, 4, 2, 1))
expand_6, expand_4, expand_2, expand_1 = (expand_tile(each) for each in (6, 4, 2, 1))
