"""The largest of a row of bfloat16, in vector instructions: numba would widen it to 64 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.compile import compiled

_intrinsic: Any = intrinsic  # its stub keeps the typing context among the parameters
_SHORTS = 32
"""Of a vector."""


@_intrinsic
def _largest_of_vectors(typing_context: Any, address: Any, count: Any) -> Any:
    """Of uint16 without their highest bits; count: of vectors, at least 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        short, int64 = ir.IntType(16), ir.IntType(64)
        vector = ir.VectorType(short, _SHORTS)
        source = builder.inttoptr(arguments[0], ir.PointerType(vector))
        zeros, mask = (ir.Constant(vector, [value] * _SHORTS) for value in (0, 0x7FFF))
        largest = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 2), f"llvm.umax.v{_SHORTS}i16"
        )
        before = builder.block
        loop, after = builder.append_basic_block("largest"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        at, total = builder.phi(int64), builder.phi(vector)
        bits = builder.and_(builder.load(builder.gep(source, [at]), align=2), mask)
        total_now = builder.call(largest, [total, bits])
        following = builder.add(at, ir.Constant(int64, 1))
        for phi, start, now in ((at, ir.Constant(int64, 0), following), (total, zeros, total_now)):
            phi.add_incoming(start, before)
            phi.add_incoming(now, loop)
        builder.cbranch(builder.icmp_signed("<", following, arguments[1]), loop, after)
        builder.position_at_end(after)
        kind = ir.FunctionType(short, [vector])
        name = f"llvm.vector.reduce.umax.v{_SHORTS}i16"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.zext(builder.call(reduce, [total_now]), int64)

    return types.int64(types.intp, types.int64), generate


@compiled
def largest_magnitude(bits: Any) -> Any:  # pragma: no cover - compiled
    """bits: of bfloat16, contiguous. Those of the largest without its sign; NaN is the largest."""
    whole = bits.size // _SHORTS
    largest = _largest_of_vectors(bits.ctypes.data, whole) if whole > 0 else np.int64(0)
    for k in range(whole * _SHORTS, bits.size):
        largest = max(largest, np.int64(bits[k]) & 0x7FFF)
    return largest
