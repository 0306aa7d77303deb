"""Vectors inside numba kernels, as LLVM's instructions: rows of bfloat16 beside float32.

A row is read as words of two elements. So float32 beside rows is spread: of every LINE elements,
those at even places come first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
LINE = 2 * LANES
"""Elements of a row that are read at once: a cache line."""

vector_intrinsic: Any = intrinsic(prefer_literal=True)

FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT32, LANES)
HALVES = ir.VectorType(ir.IntType(16), LANES)
_HALF = ir.Constant(WORDS, [16] * LANES)

_BLOCKS = range(0, LANES, 4)
_FOLDS = (
    ([block + lane for block in _BLOCKS for lane in (0, 16, 1, 17)], 2),
    ([block + lane for block in _BLOCKS for lane in (0, 1, 16, 17)], 2),
    ([block + lane for block in (0, 4, 16, 20) for lane in range(4)], 8),
    ([block + lane for block in (0, 8, 16, 24) for lane in range(4)], 4),
)
"""Lanes of two vectors, and how far after each the one stands that is added to it: first within
blocks of four lanes, as shuffles are cheapest there, then of whole blocks."""


def loop(
    builder: Any,
    count: Any,
    starts: Sequence[Any],
    body: Callable[[Any, list[Any]], Sequence[Any]],
) -> list[Any]:
    """What body(index, values) makes of values that begin as `starts`, for each index below
    `count`, an int64 that is at least 1. They stay in registers."""
    before = builder.block
    inside, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(inside)
    builder.position_at_end(inside)
    index = builder.phi(INT64)
    values = [builder.phi(start.type) for start in starts]
    now = list(body(index, list(values)))
    end = builder.block  # of the body, which may have blocks of its own
    following = builder.add(index, ir.Constant(INT64, 1))
    carried = ((index, ir.Constant(INT64, 0), following), *zip(values, starts, now, strict=True))
    for phi, start, later in carried:
        phi.add_incoming(start, before)
        phi.add_incoming(later, end)
    builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
    builder.position_at_end(after)
    return now


class Code:
    """What loops of vectors are written in. Addresses are int64, in bytes."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self._fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fma.v{LANES}f32"
        )
        self._bytes = ir.PointerType(ir.IntType(8))
        self._prefetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [self._bytes, INT32, INT32, INT32]),
            "llvm.prefetch.p0i8",
        )

    def at(self, address: Any, index: Any, size: int) -> Any:
        """address + index * size"""
        if isinstance(index, int):
            return self.builder.add(address, ir.Constant(INT64, index * size))
        return self.builder.add(address, self.builder.mul(index, ir.Constant(INT64, size)))

    def load(self, address: Any, kind: Any, align: int = 4) -> Any:
        pointer = self.builder.inttoptr(address, ir.PointerType(kind))
        return self.builder.load(pointer, align=align)

    def store(self, value: Any, address: Any, align: int = 4) -> None:
        pointer = self.builder.inttoptr(address, ir.PointerType(value.type))
        self.builder.store(value, pointer, align=align)

    def everywhere(self, value: Any) -> Any:
        kind = ir.VectorType(value.type, LANES)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(INT32, 0))
        return self.shuffled(first, undefined, [0] * LANES)

    def row(self, address: Any) -> tuple[Any, Any]:
        """LINE elements of a row: those at even places and those at odd ones."""
        return self.halves(self.load(address, WORDS, align=2))

    def halves(self, words: Any) -> tuple[Any, Any]:
        """The lower and the upper elements of words, as float32."""
        even = self.builder.shl(words, _HALF)
        odd = self.builder.and_(words, ir.Constant(WORDS, [0xFFFF0000] * LANES))
        return self.builder.bitcast(even, VECTOR), self.builder.bitcast(odd, VECTOR)

    def widened(self, halves: Any) -> Any:
        """LANES bfloat16 as float32."""
        words = self.builder.zext(halves, WORDS)
        return self.builder.bitcast(self.builder.shl(words, _HALF), VECTOR)

    def rounded(self, value: Any) -> Any:
        """LANES bfloat16, rounded to nearest even as in kernels.cpu.floats."""
        return self.builder.trunc(self.builder.lshr(self._rounded(value), _HALF), HALVES)

    def rounded_words(self, even: Any, odd: Any) -> Any:
        """What `halves` gives float32 of, rounded to nearest even as in kernels.cpu.floats."""
        low = self.builder.lshr(self._rounded(even), _HALF)
        high = self.builder.and_(self._rounded(odd), ir.Constant(WORDS, [0xFFFF0000] * LANES))
        return self.builder.or_(low, high)

    def _rounded(self, value: Any) -> Any:
        """Words whose upper half is the bfloat16."""

        def constant(number: int) -> Any:
            return ir.Constant(WORDS, [number] * LANES)

        builder = self.builder
        word = builder.bitcast(value, WORDS)
        odd = builder.and_(builder.lshr(word, constant(16)), constant(1))
        near = builder.add(word, builder.add(odd, constant(0x7FFF)))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.select(is_nan, builder.or_(word, constant(0x00400000)), near)

    def two_vectors(self, address: Any) -> tuple[Any, Any]:
        return self.load(address, VECTOR), self.load(self.at(address, LANES, 4), VECTOR)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.call(self._fma, [a, b, c])

    def prefetch(self, address: Any, size: int, *, near: bool = False) -> None:
        """`size` bytes, to be read, into the second-level cache, where the first has no room; near:
        into both."""
        options = [ir.Constant(INT32, value) for value in (0, 3 if near else 2, 1)]
        for start in range(0, size, 2 * LINE):
            pointer = self.builder.inttoptr(self.at(address, start, 1), self._bytes)
            self.builder.call(self._prefetch, [pointer, *options])

    def shuffled(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """These lanes of both, b's numbered after a's."""
        return self.builder.shuffle_vector(a, b, ir.Constant(WORDS, lanes))

    def totals(self, vectors: list[Any]) -> Any:
        """Lane i: the sum of vector i. LANES vectors."""
        for low, distance in _FOLDS:
            high = [lane + distance for lane in low]
            vectors = [
                self.builder.fadd(self.shuffled(a, b, low), self.shuffled(a, b, high))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]


@vector_intrinsic
def spread(typing_context: Any, target: Any, source: Any, factor: Any, head_dim: Any) -> Any:
    """target[head_dim] float32, spread = source[head_dim] bfloat16 * factor"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(builder)
        factors = code.everywhere(arguments[2])
        for k in range(0, head_dim.literal_value, LINE):
            halves = code.row(code.at(arguments[1], k, 2))
            for start, half in zip((k, k + LANES), halves, strict=True):
                code.store(builder.fmul(half, factors), code.at(arguments[0], start, 4))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, head_dim), generate


@vector_intrinsic
def gather(typing_context: Any, target: Any, source: Any, factor: Any, head_dim: Any) -> Any:
    """target[head_dim] bfloat16, rounded to nearest even = source[head_dim] float32, spread, *
    factor"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(builder)
        factors = code.everywhere(arguments[2])

        for k in range(0, head_dim.literal_value, LINE):
            halves = code.two_vectors(code.at(arguments[1], k, 4))
            words = code.rounded_words(*(builder.fmul(half, factors) for half in halves))
            code.store(words, code.at(arguments[0], k, 2), align=2)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, head_dim), generate
