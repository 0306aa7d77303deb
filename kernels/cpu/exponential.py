"""exp and tanh inside numba kernels, in a form that vector units can run: the C library's are calls
for one number at a time. And exp of one vector, for kernels that are written in vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.compile import compiled

_intrinsic: Any = intrinsic  # its stub keeps the typing context among the parameters

# Beyond these, float32 has no normal result.
_LOWEST, _HIGHEST = np.float32(-87.3), np.float32(88.0)
_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts, so that n * ln 2 is subtracted without rounding (Cody and Waite 1980).
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_ONE, _HALF, _TWO = np.float32(1.0), np.float32(0.5), np.float32(2.0)
# Taylor's coefficients; |r| <= ln 2 / 2, so the first one left out is below 2**-23.
_C2, _C3, _C4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
_C5, _C6, _C7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)


@_intrinsic
def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        int32 = ir.IntType(32)
        biased = builder.add(arguments[0], ir.Constant(int32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(int32, 23)), ir.FloatType())

    return types.float32(types.int32), generate


@_intrinsic
def _floor(typing_context: Any, value: Any) -> Any:
    """numpy's is a call."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floor = builder.module.declare_intrinsic("llvm.floor", [ir.FloatType()])
        return builder.call(floor, [arguments[0]])

    return types.float32(types.float32), generate


@compiled
def exp(x: Any) -> Any:  # pragma: no cover - compiled
    """e**x of a float32, to about 2 units in the last place. NaN stays NaN."""
    # Comparisons with NaN are false: it passes.
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    n = _floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    series = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))
    return (_ONE + r + r * r * series) * _power_of_two(np.int32(n))


@compiled
def tanh(x: Any) -> Any:  # pragma: no cover - compiled
    """To about 1e-7 of 1, not of the result."""
    return _ONE - _TWO / (exp(_TWO * x) + _ONE)


def vector_exp(builder: Any, x: Any) -> Any:
    """As `exp`, the code for a vector of float32."""
    kind, lanes = x.type, x.type.count
    words = ir.VectorType(ir.IntType(32), lanes)

    def call(name: str, *values: Any) -> Any:
        signature = ir.FunctionType(kind, [kind] * len(values))
        name = f"llvm.{name}.v{lanes}f32"
        function = cgutils.get_or_insert_function(builder.module, signature, name)
        return builder.call(function, values)

    def constant(value: Any) -> Any:
        return ir.Constant(kind, [float(value)] * lanes)

    low, high = constant(_LOWEST), constant(_HIGHEST)
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    n = call("floor", call("fma", x, constant(_LOG2_E), constant(_HALF)))
    r = call("fma", n, constant(-_LN2_HIGH), x)
    r = call("fma", n, constant(-_LN2_LOW), r)
    series = constant(_C7)
    for coefficient in (_C6, _C5, _C4, _C3, _C2, _ONE, _ONE):
        series = call("fma", series, r, constant(coefficient))
    exponent = builder.add(builder.fptosi(n, words), ir.Constant(words, [127] * lanes))
    power = builder.shl(exponent, ir.Constant(words, [23] * lanes))
    return builder.fmul(series, builder.bitcast(power, kind))
