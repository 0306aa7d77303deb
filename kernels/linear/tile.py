"""The innermost loop of the base GEMM on CPU, as vector instructions.

numba's own loops keep their sums in memory between inputs; here they stay in registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.linear.tiling import SIZES

LANES = 16
PANEL = 2 * LANES
"""Output features of a panel: two vectors of float32."""
PREFETCH = 64
"""Inputs ahead that weights are asked for: the processor itself does not look past a 4 KiB page."""

_intrinsic: Any = intrinsic  # its stub keeps the typing context among the parameters


def make_tile(rows: int, is_wide: bool = False) -> Any:
    """sums[rows, PANEL] = x[in_features, rows].T @ panel[in_features, PANEL], held in registers.

    x and sums are float32, and so is the panel if `is_wide`; else it is bfloat16. Where it is wide,
    products are added to the sums that are there.
    """
    vector = ir.VectorType(ir.FloatType(), LANES)
    halves = ir.VectorType(ir.IntType(16), LANES)
    words = ir.VectorType(ir.IntType(32), LANES)
    int32, int64 = ir.IntType(32), ir.IntType(64)
    sixteen = ir.Constant(words, [16] * LANES)
    everywhere = ir.Constant(ir.VectorType(int32, LANES), [0] * LANES)
    num_vectors = PANEL // LANES

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x = builder.inttoptr(arguments[0], ir.PointerType(ir.FloatType()))
        element = ir.FloatType() if is_wide else ir.IntType(16)
        panel = builder.inttoptr(arguments[1], ir.PointerType(element))
        sums = builder.inttoptr(arguments[2], ir.PointerType(ir.FloatType()))
        in_features = arguments[3]
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32"
        )
        bytes_ = ir.PointerType(ir.IntType(8))
        prefetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [bytes_, int32, int32, int32]),
            "llvm.prefetch.p0i8",
        )
        targets = [
            builder.bitcast(
                builder.gep(sums, [ir.Constant(int64, index * LANES)]), ir.PointerType(vector)
            )
            for index in range(rows * num_vectors)
        ]
        zeros = ir.Constant(vector, [0.0] * LANES)
        starts = [builder.load(each, align=4) if is_wide else zeros for each in targets]
        before = builder.block
        loop = builder.append_basic_block("products")
        after = builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(int64)
        k.add_incoming(ir.Constant(int64, 0), before)
        totals = [builder.phi(vector) for _ in range(rows * num_vectors)]
        for total, start in zip(totals, starts, strict=True):
            total.add_incoming(start, before)
        weights = []
        if not is_wide:  # else it has just been made
            distance = builder.add(k, ir.Constant(int64, PREFETCH))
            ahead = builder.gep(panel, [builder.mul(distance, ir.Constant(int64, PANEL))])
            locality = [ir.Constant(int32, value) for value in (0, 3, 1)]  # to read, keep, data
            builder.call(prefetch, [builder.bitcast(ahead, bytes_), *locality])
        for part in range(num_vectors):
            at = builder.add(
                builder.mul(k, ir.Constant(int64, PANEL)), ir.Constant(int64, part * LANES)
            )
            pointer = builder.gep(panel, [at])
            if is_wide:
                pointer = builder.bitcast(pointer, ir.PointerType(vector))
                weights.append(builder.load(pointer, align=4))
            else:
                pointer = builder.bitcast(pointer, ir.PointerType(halves))
                bits = builder.zext(builder.load(pointer, align=2), words)
                weights.append(builder.bitcast(builder.shl(bits, sixteen), vector))
        sums_now = []
        for row in range(rows):
            at = builder.add(builder.mul(k, ir.Constant(int64, rows)), ir.Constant(int64, row))
            one = builder.load(builder.gep(x, [at]), align=4)
            first = builder.insert_element(
                ir.Constant(vector, ir.Undefined), one, ir.Constant(int32, 0)
            )
            token = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), everywhere)
            sums_now += [
                builder.call(fma, [token, weights[part], totals[row * num_vectors + part]])
                for part in range(num_vectors)
            ]
        for total, now in zip(totals, sums_now, strict=True):
            total.add_incoming(now, loop)
        following = builder.add(k, ir.Constant(int64, 1))
        k.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, in_features), loop, after)
        builder.position_at_end(after)
        for target, now in zip(targets, sums_now, strict=True):
            builder.store(now, target, align=4)
        return context.get_dummy_value()

    def tile(typing_context: Any, x: Any, panel: Any, sums: Any, in_features: Any) -> Any:
        address = types.intp
        return types.void(address, address, address, types.int64), generate

    return _intrinsic(tile)


tile_1, tile_2, tile_4, tile_6, tile_8, tile_12 = (make_tile(rows) for rows in SIZES)
wide_tile_6, wide_tile_8, wide_tile_12 = (make_tile(rows, is_wide=True) for rows in (6, 8, 12))
