"""Running a numba kernel on torch's own OpenMP threads.

A second pool of threads would take the cores from torch's, which wait for the next product busily.
Work is handed out piece by piece from a counter, not split beforehand: a core that the system takes
away for a while costs one piece, not half of the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from kernels.cpu.compile import compiled, kept

_carray: Any = carray
_intrinsic: Any = intrinsic  # its stub keeps the typing context among the parameters


def worker(function: Callable[[Any], None]) -> Callable[[], Any]:
    """Decorates what every thread runs: a function of a pointer to the int64s that `run` is given
    (`told` makes them an array). It is compiled when it is first run."""

    @cache
    def compile_once() -> Any:
        signature = types.void(types.CPointer(types.int64))
        return kept(lambda options: cfunc(signature, **options)(function))

    return compile_once


@_intrinsic
def _add_one(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.intp), generate


@compiled
def take(arguments: Any, counter: Any) -> Any:  # pragma: no cover - compiled
    """Adds 1 to arguments[counter], at once for all threads, and returns what it was."""
    return _add_one(arguments.ctypes.data + counter * 8)


@_intrinsic
def _pointer_to(typing_context: Any, address: Any, like: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.intp, like), generate


@compiled
def told(pointer: Any, count: Any) -> Any:  # pragma: no cover - compiled
    """What `run` was given: `count` int64s."""
    return _carray(pointer, (count,))


@compiled
def array(address: Any, like: Any, shape: Any) -> Any:  # pragma: no cover - compiled
    """What lies at an address, as an array of `like`'s dtype."""
    return _carray(_pointer_to(address, like), shape)


def run(work: Callable[[], Any], arguments: np.ndarray[Any, Any], *, alone: bool = False) -> None:
    """Calls a `worker` with the arguments on every thread, and returns when all have.

    arguments: int64, contiguous. alone: on this thread only, as so little work is done soonest
    """
    num_threads = torch.get_num_threads()
    if alone or _gomp_parallel is None or num_threads == 1:
        work().ctypes(arguments.ctypes.data_as(_INT64_POINTER))
    else:
        _gomp_parallel(work().address, arguments.ctypes.data, num_threads, 0)


def _find_gomp_parallel() -> Any:
    """What the compiler turned torch's parallel regions into, in the runtime that torch uses. None
    where that is not OpenMP."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


_INT64_POINTER = ctypes.POINTER(ctypes.c_int64)
_gomp_parallel = _find_gomp_parallel()
