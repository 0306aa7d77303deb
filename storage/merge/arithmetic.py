"""The sums behind the strategies, as PEFT's `add_weighted_adapter` makes them (peft 0.21,
utils/merge_utils.py), on one matrix of every component.

All data planes must come to the same bits, whatever their processor and its mode. So every
operation is one that IEEE 754 rounds in one way only, in float32 and a fixed order; denormal
results, which some threads flush and others keep, are zeros; equal magnitudes are kept in the order
of their places; and what DARE draws comes from a counter (Philox), keyed by seed and matrix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from storage import pace

Values = npt.NDArray[np.float32]  # [n]
_EXPONENT = np.uint32(0x7F800000)
_PIECE = 1 << 18  # elements at a time


def widened(data: memoryview, dtype: str) -> Values:
    """A tensor's bytes as float32. dtype: "F32", "F16" or "BF16"."""
    if dtype == "BF16":
        bits = np.frombuffer(data, dtype="<u2").astype(np.uint32)
        bits <<= np.uint32(16)
        return flushed(bits.view(np.float32))
    return flushed(np.frombuffer(data, dtype="<f2" if dtype == "F16" else "<f4").astype(np.float32))


def flushed(values: Values) -> Values:
    """In place: denormal numbers and negative zeros become zeros."""
    bits = values.view(np.uint32)
    for start in range(0, bits.size, _PIECE):
        piece = bits[start : start + _PIECE]
        piece[(piece & _EXPONENT) == 0] = 0
        pace.rest()
    return values


def scaled(values: Values, factor: float) -> Values:
    with np.errstate(over="ignore"):  # infinities are refused by who reads the result
        return flushed(values * np.float32(factor))


def weighted_sum(tensors: Sequence[Values], factors: Sequence[float]) -> Values:
    total = scaled(tensors[0], factors[0])
    for values, factor in zip(tensors[1:], factors[1:], strict=True):
        total = _sum(total, scaled(values, factor))
    return total


def keep_largest(values: Values, density: float) -> Values:
    """The int(density * n) largest magnitudes, the first of equal ones; zeros elsewhere."""
    count = int(density * values.size)
    if density >= 1.0 or count == values.size:
        return values
    if count == 0:
        return np.zeros_like(values)
    magnitudes = np.abs(values)
    least = np.partition(magnitudes, values.size - count)[values.size - count]
    keep = magnitudes > least
    keep[np.flatnonzero(magnitudes == least)[: count - int(keep.sum())]] = True
    pace.rest()
    return np.where(keep, values, np.float32(0.0))


def keep_drawn(values: Values, density: float, key: bytes) -> Values:
    """Each with probability `density`, divided by it; zeros elsewhere. key: of the draw."""
    if density >= 1.0:
        return values
    draws = np.random.Philox(key=int.from_bytes(hashlib.sha256(key).digest()[:16], "little"))
    limit = np.uint64(density * 2.0**53)
    kept = np.zeros_like(values)
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE]
        drawn = draws.random_raw(piece.size) >> np.uint64(11)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            kept[start : start + _PIECE] = np.where(
                drawn < limit, piece / np.float32(density), np.float32(0.0)
            )
        pace.rest()
    return flushed(kept)


def elected_mean(tensors: Sequence[Values], factors: Sequence[float], majority_sign: str) -> Values:
    """TIES: of each place the weighted values whose sign is the majority's, over their number. The
    majority is by the sum of values ("total") or of signs ("frequency"), without weights."""
    is_positive = _majority(tensors, majority_sign)
    total = np.zeros_like(tensors[0])
    count = np.zeros_like(tensors[0])
    for values, factor in zip(tensors, factors, strict=True):
        agrees = np.where(is_positive, values > 0, values < 0)
        total = _sum(total, np.where(agrees, scaled(values, factor), np.float32(0.0)))
        count += agrees
        pace.rest()
    return flushed(np.divide(total, np.maximum(count, np.float32(1.0)), dtype=np.float32))


def _majority(tensors: Sequence[Values], method: str) -> npt.NDArray[np.bool_]:
    total = np.zeros_like(tensors[0])
    for values in tensors:
        total = _sum(total, np.sign(values) if method == "frequency" else values)
    return total >= 0


def _sum(one: Values, other: Values) -> Values:
    with np.errstate(over="ignore", invalid="ignore"):
        return flushed(one + other)
