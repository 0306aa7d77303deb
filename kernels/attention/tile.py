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
            with cgutils.for_range(builder, ir.Constant(INT64, RUN // positions)) as loop:
                start = builder.mul(loop.index, ir.Constant(INT64, positions))
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
        for first, heads in _parts(group.literal_value):
            width = _width(dim, heads)
            for k in range(0, dim, width):
                vectors = [
                    (head, at)
                    for head in range(first, first + heads)
                    for at in range(k, k + width, LANES)
                ]
                starts = [
                    builder.mul(stride, ir.Constant(INT64, head))
                    for head in range(first, first + heads)
                ]
                targets = [code.at(sums, head * dim + at, 4) for head, at in vectors]
                totals = [code.load(target, VECTOR) for target in targets]
                before = builder.block
                loop = builder.append_basic_block("values")
                after = builder.append_basic_block("weighed")
                builder.branch(loop)
                builder.position_at_end(loop)
                index = builder.phi(INT64)
                index.add_incoming(ir.Constant(INT64, 0), before)
                now = [builder.phi(VECTOR) for _ in vectors]
                for phi, total in zip(now, totals, strict=True):
                    phi.add_incoming(total, before)
                sums_now = list(now)
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
                for head in range(heads):
                    at = code.at(weights, builder.add(starts[head], index), 4)
                    weight = code.everywhere(code.load(at, FLOAT))
                    for part, half in enumerate(value):
                        each = head * len(value) + part
                        sums_now[each] = code.fma(weight, half, sums_now[each])
                for phi, total in zip(now, sums_now, strict=True):
                    phi.add_incoming(total, loop)
                following = builder.add(index, ir.Constant(INT64, 1))
                index.add_incoming(following, loop)
                builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
                builder.position_at_end(after)
                for target, total in zip(targets, sums_now, strict=True):
                    code.store(total, target)
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
