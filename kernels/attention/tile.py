"""The innermost loops of decode attention on CPU, as vector instructions.

numba's own loops add up one score at a time, and keep sums in memory between positions. Here the
heads that share a key head go through its rows together, and what they add up stays in registers.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu.vectors import (
    FLOAT,
    INT32,
    INT64,
    LANES,
    LINE,
    VECTOR,
    Code,
    loop,
    vector_intrinsic,
)

RUN = 16
"""Positions that are taken at once; meanwhile as many that come after them are fetched."""
_MAX_HEADS = 8
"""Of those that share a key head, so many go through its rows at once."""
_MAX_SUMS = 24
"""Registers that hold sums of values; the others hold a row's elements."""

_ZEROS = ir.Constant(VECTOR, [0.0] * LANES)


def _parts(group: int) -> list[tuple[int, int]]:
    """The heads of a group that go together: (first, number)."""
    count = -(-group // _MAX_HEADS)
    bounds = [part * group // count for part in range(count + 1)]
    return [(first, end - first) for first, end in itertools.pairwise(bounds)]


@vector_intrinsic
def score(
    typing_context: Any,
    scores: Any,
    stride: Any,
    queries: Any,
    rows: Any,
    offset: Any,
    head_dim: Any,
    group: Any,
) -> Any:
    """scores[group, RUN] = queries[group, head_dim] @ keys[RUN, head_dim].T

    scores: float32, rows `stride` elements apart. queries: float32, spread. rows: [2 * RUN]
    addresses int64: a key is bfloat16 and stands `offset` bytes after one of the first RUN; what
    stands there after the others is fetched.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, dim = Code(builder), head_dim.literal_value
        scores, stride, queries, rows, offset = arguments[:5]
        for first, heads in _parts(group.literal_value):
            positions = LANES // (1 << (heads - 1).bit_length())
            with cgutils.for_range(builder, ir.Constant(INT64, RUN // positions)) as turn:
                start = builder.mul(turn.index, ir.Constant(INT64, positions))
                keys, ahead = (
                    [
                        builder.add(code.load(code.at(at, p, 8), INT64, align=8), offset)
                        for p in range(positions)
                    ]
                    for at in (
                        code.at(rows, start, 8),
                        code.at(rows, builder.add(start, ir.Constant(INT64, RUN)), 8),
                    )
                )
                totals = _products(code, code.at(queries, first * dim, 4), keys, heads, dim)
                if first == 0:
                    for each in ahead:
                        code.prefetch(each, 2 * dim)
                for head in range(heads):
                    lanes = [head * positions + p for p in range(positions)]
                    mask = ir.Constant(ir.VectorType(INT32, positions), lanes)
                    row = builder.mul(stride, ir.Constant(INT64, first + head))
                    target = code.at(scores, builder.add(row, start), 4)
                    code.store(builder.shuffle_vector(totals, totals, mask), target)
        return context.get_dummy_value()

    address, number = types.intp, types.int64
    return types.void(address, number, address, address, number, head_dim, group), generate


def _products(code: Code, queries: Any, keys: list[Any], heads: int, dim: int) -> Any:
    """Lane head * len(keys) + p: the product of a query and the key at keys[p]."""
    sums = [_ZEROS] * LANES
    for k in range(0, dim, LINE):
        # The fewer ones stay in registers.
        few_heads = heads < len(keys)
        some = (
            [code.two_vectors(code.at(queries, head * dim + k, 4)) for head in range(heads)]
            if few_heads
            else [code.row(code.at(key, k, 2)) for key in keys]
        )
        for index in range(len(keys) if few_heads else heads):
            if few_heads:
                other = code.row(code.at(keys[index], k, 2))
            else:
                other = code.two_vectors(code.at(queries, index * dim + k, 4))
            for of, one in enumerate(some):
                at = of * len(keys) + index if few_heads else index * len(keys) + of
                for a, b in zip(one, other, strict=True):
                    sums[at] = code.fma(a, b, sums[at])
    return code.totals(sums)


@vector_intrinsic
def weigh(
    typing_context: Any,
    sums: Any,
    weights: Any,
    stride: Any,
    rows: Any,
    offset: Any,
    count: Any,
    head_dim: Any,
    group: Any,
) -> Any:
    """sums[group, head_dim] += weights[group, count] @ values[count, head_dim]

    sums: float32, spread. weights: float32, rows `stride` elements apart. rows: [count + RUN]
    addresses int64: a value is bfloat16 and stands `offset` bytes after one of the first `count`;
    what stands there after the last `count` is fetched. count: above 0.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, dim = Code(builder), head_dim.literal_value
        sums, weights, stride, rows, offset, count = arguments[:6]

        def add_rows(first: int, heads: int, k: int, width: int) -> None:
            """To the sums of these heads, their elements [k, k + width)."""

            def add_row(index: Any, totals: list[Any]) -> list[Any]:
                row = builder.add(code.load(code.at(rows, index, 8), INT64, align=8), offset)
                if first == 0:
                    ahead = code.at(rows, builder.add(index, ir.Constant(INT64, RUN)), 8)
                    ahead = builder.add(code.load(ahead, INT64, align=8), offset)
                    code.prefetch(code.at(ahead, k, 2), 2 * width)
                value = [
                    half
                    for at in range(k, k + width, LINE)
                    for half in code.row(code.at(row, at, 2))
                ]
                for head, start in enumerate(starts):
                    at = code.at(weights, builder.add(start, index), 4)
                    weight = code.everywhere(code.load(at, FLOAT))
                    for part, half in enumerate(value):
                        each = head * len(value) + part
                        totals[each] = code.fma(weight, half, totals[each])
                return totals

            some = range(first, first + heads)
            starts = [builder.mul(stride, ir.Constant(INT64, head)) for head in some]
            targets = [
                code.at(sums, head * dim + at, 4)
                for head in some
                for at in range(k, k + width, LANES)
            ]
            before = [code.load(target, VECTOR) for target in targets]
            for target, total in zip(targets, loop(builder, count, before, add_row), strict=True):
                code.store(total, target)

        for first, heads in _parts(group.literal_value):
            width = _width(dim, heads)
            for k in range(0, dim, width):
                add_rows(first, heads, k, width)
        return context.get_dummy_value()

    address, number = types.intp, types.int64
    told = (address, address, number, address, number, number, head_dim, group)
    return types.void(*told), generate


def _width(dim: int, heads: int) -> int:
    """How many elements of values go through the registers at once."""
    return max(
        width
        for width in range(LINE, dim + 1, LINE)
        if dim % width == 0 and (width == LINE or heads * width // LANES <= _MAX_SUMS)
    )
