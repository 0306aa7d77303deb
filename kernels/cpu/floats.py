"""Loading and storing pool elements inside numba kernels, computing in float32.

numpy has no bfloat16: such tensors come as their uint16 bit patterns (`bits_of`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_intrinsic: Any = intrinsic  # its stub keeps the typing context among the parameters

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16)

# Stand for an element type where a kernel makes an array of an address (threads.array).
FLOATS = np.empty(0, dtype=np.float32)
BITS = np.empty(0, dtype=np.uint16)  # bfloat16
WORDS = np.empty(0, dtype=np.uint32)


def aligned_floats(size: int) -> np.ndarray[Any, Any]:
    """[size] float32, uninitialised, that begins with a cache line: a vector that lies across two
    costs two loads."""
    buffer = np.empty(size + 16, dtype=np.float32)
    start = -buffer.ctypes.data // 4 % 16
    return buffer[start : start + size]


def bits_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as numpy sees it: float32, or uint16 for bfloat16."""
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def load(element: Any) -> Any:
    """An element as float32."""
    raise NotImplementedError("inside numba kernels only")


def store(array: Any, index: Any, value: Any) -> Any:
    """array[index] = value, rounded to nearest even where the array is bfloat16."""
    raise NotImplementedError("inside numba kernels only")


@_intrinsic
def _widen(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.zext(arguments[0], ir.IntType(32))
        word = builder.shl(word, ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(word, ir.FloatType())

    return types.float32(types.uint16), generate


@_intrinsic
def _narrow(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        int32 = ir.IntType(32)
        word = builder.bitcast(arguments[0], int32)
        odd = builder.and_(builder.lshr(word, ir.Constant(int32, 16)), ir.Constant(int32, 1))
        # Carries into the exponent as rounding should; NaN keeps its sign and a set mantissa bit.
        rounded = builder.add(word, builder.add(odd, ir.Constant(int32, 0x7FFF)))
        magnitude = builder.and_(word, ir.Constant(int32, 0x7FFFFFFF))
        is_nan = builder.icmp_unsigned(">", magnitude, ir.Constant(int32, 0x7F800000))
        quiet = builder.or_(word, ir.Constant(int32, 0x00400000))
        word = builder.select(is_nan, quiet, rounded)
        return builder.trunc(builder.lshr(word, ir.Constant(int32, 16)), ir.IntType(16))

    return types.uint16(types.float32), generate


@_intrinsic
def pair_of_halves(typing_context: Any, value: Any) -> Any:
    """A float32, rounded to float16, twice: the bits of both in a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = builder.fptrunc(arguments[0], ir.HalfType())
        word = builder.zext(builder.bitcast(half, ir.IntType(16)), ir.IntType(32))
        return builder.or_(word, builder.shl(word, ir.Constant(ir.IntType(32), 16)))

    return types.uint32(types.float32), generate


@overload(load)
def _load(element: Any) -> Any:
    # numba wants the same parameters, annotations included.
    if element == types.uint16:

        def widen(element: Any) -> Any:
            return _widen(element)

        return widen

    def as_is(element: Any) -> Any:
        return element

    return as_is


@overload(store)
def _store(array: Any, index: Any, value: Any) -> Any:
    if array.dtype == types.uint16:

        def narrow(array: Any, index: Any, value: Any) -> Any:
            array[index] = _narrow(value)

        return narrow

    def as_is(array: Any, index: Any, value: Any) -> Any:
        array[index] = value

    return as_is
