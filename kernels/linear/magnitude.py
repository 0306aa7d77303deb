"""The largest of a row of bfloat16, in vector instructions: numba would widen it to 64 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.compile import compiled
from kernels.cpu.vectors import INT64, loop

_intrinsic: Any = intrinsic  # its stub keeps the typing context among the parameters
_SHORTS = 32
"""Of a vector."""


@_intrinsic
def _largest_of_vectors(typing_context: Any, address: Any, count: Any) -> Any:
    """Of uint16 without their highest bits; count: of vectors, at least 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        short = ir.IntType(16)
        vector = ir.VectorType(short, _SHORTS)
        source = builder.inttoptr(arguments[0], ir.PointerType(vector))
        zeros, mask = (ir.Constant(vector, [value] * _SHORTS) for value in (0, 0x7FFF))
        largest = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 2), f"llvm.umax.v{_SHORTS}i16"
        )

        def of_vector(index: Any, values: list[Any]) -> list[Any]:
            bits = builder.and_(builder.load(builder.gep(source, [index]), align=2), mask)
            return [builder.call(largest, [values[0], bits])]

        (total,) = loop(builder, arguments[1], [zeros], of_vector)
        kind = ir.FunctionType(short, [vector])
        name = f"llvm.vector.reduce.umax.v{_SHORTS}i16"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.zext(builder.call(reduce, [total]), INT64)

    return types.int64(types.intp, types.int64), generate


@compiled
def largest_magnitude(bits: Any) -> Any:  # pragma: no cover - compiled
    """bits: of bfloat16, contiguous. Those of the largest without its sign; NaN is the largest."""
    whole = bits.size // _SHORTS
    largest = _largest_of_vectors(bits.ctypes.data, whole) if whole > 0 else np.int64(0)
    for k in range(whole * _SHORTS, bits.size):
        largest = max(largest, np.int64(bits[k]) & 0x7FFF)
    return largest
