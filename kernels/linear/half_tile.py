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
from numba.extending import intrinsic

from kernels.linear.tiling import SIZES

LANES = 32
PANEL = 2 * LANES
"""Output features of a panel: two vectors of float16."""
RUN = 32
"""Inputs whose products are added up in float16. The length decides what is lost: with 64 it is 22%
more than by rounding to bfloat16 alone, with 32 it is 12%."""
PREFETCH = 32
"""Inputs ahead that weights are asked for: the processor itself does not look past a 4 KiB page."""

_intrinsic: Any = intrinsic  # its stub keeps the typing context among the parameters
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES // 2)
_LINE_BYTES = 64


def make_tile(rows: int) -> Any:
    """sums[rows, PANEL] += x @ panel[in_features, PANEL]

    x: [runs, rows, RUN]; each float16 twice, side by side, so that one load fills a vector with it.
    panel: float16, sums: float32.
    """
    sums_of_row = PANEL // LANES

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x = builder.inttoptr(arguments[0], ir.PointerType(_INT32))
        panel = builder.inttoptr(arguments[1], ir.PointerType(ir.HalfType()))
        sums = builder.inttoptr(arguments[2], ir.PointerType(ir.FloatType()))
        in_features = arguments[3]
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_HALVES, [_HALVES] * 3), f"llvm.fma.v{LANES}f16"
        )
        zeros = ir.Constant(_HALVES, [0.0] * LANES)
        runs, products, after = (
            builder.append_basic_block(name) for name in ("runs", "products", "after")
        )
        fold = builder.append_basic_block("fold")
        kept = cgutils.alloca_once(builder, ir.ArrayType(_HALVES, rows * sums_of_row))
        kept.align = _LINE_BYTES
        before = builder.block
        builder.branch(runs)

        builder.position_at_end(runs)
        first = builder.phi(_INT64)
        first.add_incoming(ir.Constant(_INT64, 0), before)
        whole = builder.add(first, ir.Constant(_INT64, RUN))
        is_whole = builder.icmp_signed("<", whole, in_features)
        end = builder.select(is_whole, whole, in_features)
        builder.branch(products)

        builder.position_at_end(products)
        k = builder.phi(_INT64)
        k.add_incoming(first, runs)
        totals = [builder.phi(_HALVES) for _ in range(rows * sums_of_row)]
        row_start = builder.mul(k, ir.Constant(_INT64, PANEL))
        _prefetch(builder, builder.gep(panel, [row_start]))
        weights = [
            builder.load(
                builder.bitcast(
                    builder.gep(panel, [builder.add(row_start, ir.Constant(_INT64, part * LANES))]),
                    ir.PointerType(_HALVES),
                ),
                align=2,
            )
            for part in range(sums_of_row)
        ]
        now: list[Any] = []
        # [first / RUN, row, k - first]
        x_start = builder.add(builder.mul(first, ir.Constant(_INT64, rows - 1)), k)
        for row in range(rows):
            at = builder.gep(x, [builder.add(x_start, ir.Constant(_INT64, row * RUN))])
            token = _everywhere(builder, builder.load(at, align=4))
            now += [
                builder.call(fma, [token, weight, totals[row * sums_of_row + part]])
                for part, weight in enumerate(weights)
            ]
        for total, total_now in zip(totals, now, strict=True):
            total.add_incoming(zeros, runs)
            total.add_incoming(total_now, products)
        following = builder.add(k, ir.Constant(_INT64, 1))
        k.add_incoming(following, products)
        builder.cbranch(builder.icmp_signed("<", following, end), products, fold)

        builder.position_at_end(fold)
        _add_to(builder, sums, now, kept, in_features)
        first.add_incoming(end, builder.block)
        builder.cbranch(builder.icmp_signed("<", end, in_features), runs, after)

        builder.position_at_end(after)
        return context.get_dummy_value()

    def tile(typing_context: Any, x: Any, panel: Any, sums: Any, in_features: Any) -> Any:
        address = types.intp
        return types.void(address, address, address, types.int64), generate

    return _intrinsic(tile)


def _everywhere(builder: Any, pair: Any) -> Any:
    """A vector of the two equal float16 that an int32 holds."""
    words = ir.VectorType(_INT32, LANES // 2)
    none = ir.Constant(words, ir.Undefined)
    first = builder.insert_element(none, pair, ir.Constant(_INT32, 0))
    zeros = ir.Constant(words, [0] * (LANES // 2))
    return builder.bitcast(builder.shuffle_vector(first, none, zeros), _HALVES)


def _add_to(builder: Any, sums: Any, totals: list[Any], kept: Any, in_features: Any) -> None:
    """sums float32 += totals, by way of memory: what is widened on loading saves the shuffles that
    halves of registers take."""
    half = LANES // 2
    halves = ir.PointerType(ir.VectorType(ir.HalfType(), half))
    source, target = builder.bitcast(kept, halves), builder.bitcast(sums, ir.PointerType(_FLOATS))
    for index, total in enumerate(totals):
        at = builder.gep(kept, [ir.Constant(_INT64, 0), ir.Constant(_INT64, index)])
        builder.store(total, at, align=_LINE_BYTES)
    # Adds 0, which the compiler cannot know: it would unroll the loop, and shuffle registers again.
    nothing = builder.lshr(in_features, ir.Constant(_INT64, 62))
    count = builder.add(nothing, ir.Constant(_INT64, 2 * len(totals)))
    with cgutils.for_range(builder, count) as loop:
        pointer = builder.gep(target, [loop.index])
        wide = builder.fpext(
            builder.load(builder.gep(source, [loop.index]), align=half * 2), _FLOATS
        )
        builder.store(builder.fadd(builder.load(pointer, align=4), wide), pointer, align=4)


def _prefetch(builder: Any, row: Any) -> None:
    """Of the row of a panel that is PREFETCH after this one."""
    bytes_ = ir.PointerType(ir.IntType(8))
    prefetch = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [bytes_, _INT32, _INT32, _INT32]),
        "llvm.prefetch.p0i8",
    )
    to_read, keep, data = (ir.Constant(_INT32, value) for value in (0, 3, 1))
    for line in range(PANEL * 2 // _LINE_BYTES):
        offset = PREFETCH * PANEL + line * (_LINE_BYTES // 2)
        ahead = builder.gep(row, [ir.Constant(_INT64, offset)])
        builder.call(prefetch, [builder.bitcast(ahead, bytes_), to_read, keep, data])


tile_1, tile_2, tile_4, tile_6, tile_8, tile_12 = (make_tile(rows) for rows in SIZES)
