"""The softmax of attention on CPU, as vector instructions: numba's own loops take vectors of
half the size, and the highest score one at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu.compile import compiled
from kernels.cpu.exponential import tanh, vector_exp
from kernels.cpu.vectors import INT32, INT64, LANES, VECTOR, Code, vector_intrinsic


@compiled
def weigh_scores(scores: Any, count: Any, soft_cap: Any) -> Any:  # pragma: no cover - compiled
    """In place, the first `count`: their weights, which are still to be divided by what is
    returned.

    scores: float32, a multiple of LANES; the others become nearly 0. soft_cap: 0 for none.
    """
    if soft_cap > np.float32(0.0):
        for k in range(count):
            scores[k] = soft_cap * tanh(scores[k] / soft_cap)
    for k in range(count, scores.size):
        scores[k] = np.float32(-np.inf)
    at = scores.ctypes.data
    return exponentials(at, scores.size, highest_of(at, scores.size))


@vector_intrinsic
def highest_of(typing_context: Any, scores: Any, count: Any) -> Any:
    """max(scores[count]) float32; count: a multiple of LANES. NaN may be passed over."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def higher(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        code = Code(builder)
        best = cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [float("-inf")] * LANES))
        with _vectors(builder, arguments[1]) as k:
            some = code.load(code.at(arguments[0], k, 4), VECTOR)
            builder.store(higher(some, builder.load(best)), best)
        return _across(builder, builder.load(best), higher)

    return types.float32(types.intp, types.int64), generate


@vector_intrinsic
def exponentials(typing_context: Any, scores: Any, count: Any, highest: Any) -> Any:
    """scores[count] = exp(scores[count] - highest) float32; returns their sum.

    count: a multiple of LANES
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(builder)
        best = code.everywhere(arguments[2])
        total = cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0.0] * LANES))
        with _vectors(builder, arguments[1]) as k:
            at = code.at(arguments[0], k, 4)
            weights = vector_exp(builder, builder.fsub(code.load(at, VECTOR), best))
            code.store(weights, at)
            builder.store(builder.fadd(builder.load(total), weights), total)
        return _across(builder, builder.load(total), builder.fadd)

    return types.float32(types.intp, types.int64, types.float32), generate


@contextmanager
def _vectors(builder: Any, count: Any) -> Generator[Any]:
    """A loop over the vectors of `count` elements: the place of each."""
    start, step = ir.Constant(INT64, 0), ir.Constant(INT64, LANES)
    with cgutils.for_range_slice(builder, start, count, step, INT64) as (k, _):
        yield k


def _across(builder: Any, lanes: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """All lanes of a vector, combined."""
    width = LANES
    while width > 1:
        width //= 2
        turned = [(lane + width) % LANES for lane in range(LANES)]
        lanes = combine(Code(builder).shuffled(lanes, lanes, turned), lanes)
    return builder.extract_element(lanes, ir.Constant(INT32, 0))
