"""The base GEMM of bfloat16 weights on CPUs with AVX-512 but no AMX.

Such a processor multiplies float32 faster than bfloat16, and a decode step is bound by the bytes of
the weights. So weights stay bfloat16 in memory, are widened on their way to the registers, and
products are float32. A panel is PANEL output features, all inputs, one after the other: what one
tile of tokens reads in order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import binding

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.floats import BITS, FLOATS, load, store
from kernels.linear.tile import (
    PANEL,
    SIZES,
    tile_1,
    tile_2,
    tile_4,
    tile_6,
    tile_8,
    tile_12,
)

_LARGEST = SIZES[-1]
_FEW_TILES = 2
"""So many are interleaved faster by one thread than all are woken."""

# What the threads are told: counters, sizes, and addresses.
(
    _THREAD,
    _NEXT_TILE,
    _NEXT_PANEL,
    _NUM_TOKENS,
    _IN_FEATURES,
    _NUM_PANELS,
    _NUM_TILES,
    _TILES,
    _X,
    _INTERLEAVED,
    _WEIGHTS,
    _SUMS,
    _Y,
    _NUM_ARGUMENTS,
) = range(14)


@cache
def is_best() -> bool:
    """Whether this processor is one that these kernels are for."""
    features = binding.get_host_cpu_features()
    return features.get("avx512f", False) and not features.get("amx-bf16", False)


def can_pack(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.bfloat16
        and weight.shape[0] % PANEL == 0
        and is_best()
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] -> [out / PANEL, in, PANEL]"""
    return weight.view(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def unpack(panels: torch.Tensor) -> torch.Tensor:
    """[out / PANEL, in, PANEL] -> [out, in]"""
    return panels.transpose(1, 2).reshape(-1, panels.shape[1])


def linear(x: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As `kernels.linear.op.linear`, with packed weights."""
    num_tokens, in_features = x.shape
    y = x.new_empty(num_tokens, panels.shape[0] * PANEL)
    if num_tokens == 0:
        return y
    tiles = _tiles_of(num_tokens)
    _scratch.grow(_LARGEST * len(tiles) * in_features, torch.get_num_threads())
    x = x.contiguous()
    arguments = _scratch.arguments
    arguments[:] = (
        0,
        0,
        0,
        num_tokens,
        in_features,
        panels.shape[0],
        len(tiles),
        tiles.ctypes.data,
        x.data_ptr(),
        _scratch.x.ctypes.data,
        panels.data_ptr(),
        _scratch.sums.ctypes.data,
        y.data_ptr(),
    )
    if len(tiles) > _FEW_TILES:
        threads.run(_interleave_work, arguments)
    else:
        _interleave(arguments)
    threads.run(_multiply_work, arguments)
    if bias is not None:
        y += bias
    return y


@cache
def _tiles_of(num_tokens: int) -> np.ndarray[Any, Any]:
    """[num_tiles, 3] int64, of each tile: its first token, its rows (one of SIZES), the rows of
    those before. As even as can be; rows after the last token are zeros and are dropped."""
    count = -(-num_tokens // _LARGEST)
    tiles: list[tuple[int, int, int]] = []
    first = before = 0
    for left in range(count, 0, -1):
        wanted = -(-(num_tokens - first) // left)
        rows = next(size for size in SIZES if size >= wanted)
        tiles.append((first, rows, before))
        before += rows
        first += min(rows, num_tokens - first)
        if first == num_tokens:
            break
    return np.array(tiles, dtype=np.int64)


def warm_up() -> None:
    """Compiles, or loads what an earlier process compiled."""
    if is_best():
        weight = pack(torch.zeros(PANEL, 1, dtype=torch.bfloat16))
        linear(torch.zeros(1, 1, dtype=torch.bfloat16), weight, None)


class _Scratch:
    """Buffers kept between calls (one engine thread), grown as needed.

    x: float32, the tokens' inputs, for each tile [in_features, rows]. sums: float32, for each
    thread one tile's [_LARGEST, PANEL].
    """

    def __init__(self) -> None:
        self.x = np.empty(0, dtype=np.float32)
        self.sums = np.empty(0, dtype=np.float32)
        self.arguments = np.zeros(_NUM_ARGUMENTS, dtype=np.int64)

    def grow(self, inputs: int, num_threads: int) -> None:
        if self.x.size < inputs:
            self.x = np.empty(inputs, dtype=np.float32)
        if self.sums.size < num_threads * _LARGEST * PANEL:
            self.sums = np.empty(num_threads * _LARGEST * PANEL, dtype=np.float32)


_scratch = _Scratch()


@compiled
def _interleave(arguments: Any) -> None:  # pragma: no cover - compiled
    """Takes tiles until none is left, and widens their inputs to [in_features, rows]."""
    num_tokens, in_features = arguments[_NUM_TOKENS], arguments[_IN_FEATURES]
    num_tiles = arguments[_NUM_TILES]
    tiles = threads.array(arguments[_TILES], arguments, (num_tiles, 3))
    x = threads.array(arguments[_X], BITS, (num_tokens, in_features))
    num_rows = tiles[-1, 1] + tiles[-1, 2]
    out = threads.array(arguments[_INTERLEAVED], FLOATS, (num_rows * in_features,))
    while True:
        tile = threads.take(arguments, _NEXT_TILE)
        if tile >= num_tiles:
            return
        first, rows, at = tiles[tile, 0], tiles[tile, 1], tiles[tile, 2] * in_features
        for row in range(rows):
            if first + row < num_tokens:
                source = x[first + row]
                for k in range(in_features):
                    out[at + k * rows + row] = load(source[k])
            else:
                for k in range(in_features):
                    out[at + k * rows + row] = np.float32(0.0)


@compiled
def _multiply(arguments: Any) -> None:  # pragma: no cover - compiled
    """Takes panels until none is left: for each, all tiles of tokens, while it is in the cache."""
    num_tokens, in_features = arguments[_NUM_TOKENS], arguments[_IN_FEATURES]
    num_panels, num_tiles = arguments[_NUM_PANELS], arguments[_NUM_TILES]
    tiles = threads.array(arguments[_TILES], arguments, (num_tiles, 3))
    thread = threads.take(arguments, _THREAD)
    sums_at = arguments[_SUMS] + thread * (_LARGEST * PANEL * 4)
    sums = threads.array(sums_at, FLOATS, (_LARGEST, PANEL))
    y = threads.array(arguments[_Y], BITS, (num_tokens, num_panels * PANEL))
    while True:
        panel = threads.take(arguments, _NEXT_PANEL)
        if panel >= num_panels:
            return
        weights = arguments[_WEIGHTS] + panel * (in_features * PANEL * 2)
        for tile in range(num_tiles):
            first, rows = tiles[tile, 0], tiles[tile, 1]
            inputs = arguments[_INTERLEAVED] + tiles[tile, 2] * (in_features * 4)
            if rows == 1:
                tile_1(inputs, weights, sums_at, in_features)
            elif rows == 2:
                tile_2(inputs, weights, sums_at, in_features)
            elif rows == 4:
                tile_4(inputs, weights, sums_at, in_features)
            elif rows == 6:
                tile_6(inputs, weights, sums_at, in_features)
            elif rows == 8:
                tile_8(inputs, weights, sums_at, in_features)
            else:
                tile_12(inputs, weights, sums_at, in_features)
            for row in range(min(rows, num_tokens - first)):
                target = y[first + row, panel * PANEL : (panel + 1) * PANEL]
                for k in range(PANEL):
                    store(target, k, sums[row, k])


@threads.worker
def _interleave_work(pointer: Any) -> None:  # pragma: no cover - compiled
    _interleave(threads.told(pointer, _NUM_ARGUMENTS))


@threads.worker
def _multiply_work(pointer: Any) -> None:  # pragma: no cover - compiled
    _multiply(threads.told(pointer, _NUM_ARGUMENTS))
