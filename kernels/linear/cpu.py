"""The base GEMM of bfloat16 weights on CPUs with AVX-512 but no AMX.

Such a processor multiplies float32 twice as fast as bfloat16, and a decode step is bound by the
bytes of the weights. So weights stay bfloat16 in memory, are widened on their way to the registers,
and products are float32. A panel is PANEL output features, all inputs, one after the other: what
one tile of tokens reads in order. For many tiles a part of a panel is widened once, into the cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import binding

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.floats import BITS, FLOATS, aligned_floats, load, store
from kernels.cpu.program import Program
from kernels.linear.tile import (
    PANEL,
    SIZES,
    tile_1,
    tile_2,
    tile_4,
    tile_6,
    tile_8,
    tile_12,
    wide_tile_6,
    wide_tile_8,
    wide_tile_12,
)

_LARGEST = SIZES[-1]
_FEW_TILES = 2
"""So many read a panel as it is; more share a widened copy, which takes tiles of 6 and more."""
_GROUP_TILES = 6
"""Tiles that go through a panel together: their inputs and sums stay in the caches."""
_PART = 128
"""Inputs of a panel that are widened at once: what a first-level cache holds beside the tile's."""
_CHUNK = 256
"""Features that a thread interleaves at once."""

_SUMS_SIZE = _GROUP_TILES * _LARGEST * PANEL
_SCRATCH_SIZE = _SUMS_SIZE + _PART * PANEL
"""float32 for each thread: sums of a group's tiles, each [rows, PANEL]; a part [_PART, PANEL]."""


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


def is_packed(weight: torch.Tensor) -> bool:
    return weight.dim() == 3


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
    x = x.contiguous()
    program, scratch = _program(), _scratch
    scratch.grow(interleaved_size(num_tokens, in_features))
    phases = (
        interleave_arguments(num_tokens, in_features, x.data_ptr(), scratch.x.ctypes.data),
        multiply_arguments(
            num_tokens,
            in_features,
            panels.shape[0],
            scratch.x.ctypes.data,
            panels.data_ptr(),
            bias.data_ptr() if bias is not None else 0,
            y.data_ptr(),
        ),
    )
    for row, arguments in zip(program.arguments[0], phases, strict=True):
        row[: len(arguments)] = arguments
    program.run(0, 1)
    return y


def interleaved_size(num_tokens: int, in_features: int) -> int:
    """Elements of float32 that the interleaved inputs take."""
    tiles = _tiles_of(num_tokens)
    return int(tiles[-1, 1] + tiles[-1, 2]) * in_features


(
    _I_NEXT,
    _,
    _I_NUM_TOKENS,
    _I_FEATURES,
    _I_NUM_TILES,
    _I_TILES,
    _I_X,
    _I_OUT,
    _I_NUM_ARGUMENTS,
) = range(9)


def interleave_arguments(num_tokens: int, features: int, x: int, out: int) -> tuple[int, ...]:
    """What `interleave_work` is told. x: address of [num_tokens, features] bfloat16. out: address
    of `interleaved_size` float32; of each tile [features, rows]."""
    tiles = _tiles_of(num_tokens)
    return (0, 0, num_tokens, features, len(tiles), tiles.ctypes.data, x, out)


(
    _THREAD,
    _NEXT,
    _NUM_TOKENS,
    _IN_FEATURES,
    _NUM_PANELS,
    _NUM_TILES,
    _TILES,
    _X,
    WEIGHTS,
    BIAS,
    _SCRATCH,
    _Y,
    _NUM_ARGUMENTS,
) = range(13)


def multiply_arguments(
    num_tokens: int,
    in_features: int,
    num_panels: int,
    x: int,
    weights: int,
    bias: int,
    y: int,
) -> tuple[int, ...]:
    """What `multiply_work` is told. x: address of interleaved inputs; weights: of panels; bias: of
    as many bfloat16 as outputs, or 0; y: of [num_tokens, outputs] bfloat16. Once these are made, no
    more threads may run than torch has now."""
    tiles = _tiles_of(num_tokens)
    _scratch.grow(0)
    scratch = _scratch.threads.ctypes.data
    return (
        0,
        0,
        num_tokens,
        in_features,
        num_panels,
        len(tiles),
        tiles.ctypes.data,
        x,
        weights,
        bias,
        scratch,
        y,
    )


@cache
def _program() -> Program:
    program = Program(1, 2)
    program.workers[0] = interleave_work().address, multiply_work().address
    return program


@cache
def _tiles_of(num_tokens: int) -> np.ndarray[Any, Any]:
    """[num_tiles, 3] int64, of each tile: its first token, its rows (one of SIZES), the rows of
    those before. As even as can be; rows after the last token are zeros and are dropped."""
    count = -(-num_tokens // _LARGEST)
    smallest = 1 if count <= _FEW_TILES else 6
    tiles: list[tuple[int, int, int]] = []
    first = before = 0
    for left in range(count, 0, -1):
        wanted = max(-(-(num_tokens - first) // left), smallest)
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
    """Buffers kept between calls (one engine thread), grown as needed."""

    def __init__(self) -> None:
        self.x = aligned_floats(0)
        self.threads = aligned_floats(0)

    def grow(self, inputs: int) -> None:
        if self.x.size < inputs:
            self.x = aligned_floats(inputs)
        size = torch.get_num_threads() * _SCRATCH_SIZE
        if self.threads.size < size:
            self.threads = aligned_floats(size)


_scratch = _Scratch()


@threads.worker
def interleave_work(pointer: Any) -> None:  # pragma: no cover - compiled
    """Takes chunks of tiles' features until none is left, and widens them to [features, rows]."""
    a = threads.told(pointer, _I_NUM_ARGUMENTS)
    num_tokens, features, num_tiles = a[_I_NUM_TOKENS], a[_I_FEATURES], a[_I_NUM_TILES]
    tiles = threads.array(a[_I_TILES], a, (num_tiles, 3))
    x = threads.array(a[_I_X], BITS, (num_tokens, features))
    num_chunks = (features + _CHUNK - 1) // _CHUNK
    while True:
        task = threads.take(a, _I_NEXT)
        if task >= num_tiles * num_chunks:
            return
        tile, chunk = task // num_chunks, task % num_chunks
        begin, end = chunk * _CHUNK, min((chunk + 1) * _CHUNK, features)
        first, rows = tiles[tile, 0], tiles[tile, 1]
        out = threads.array(a[_I_OUT] + tiles[tile, 2] * features * 4, FLOATS, (features, rows))
        for row in range(rows):
            if first + row < num_tokens:
                source = x[first + row]
                for k in range(begin, end):
                    out[k, row] = load(source[k])
            else:
                for k in range(begin, end):
                    out[k, row] = np.float32(0.0)


@compiled
def _store_tile(
    sums: Any, rows: Any, y: Any, first: Any, panel: Any, all_bias: Any, has_bias: Any
) -> None:  # pragma: no cover - compiled
    """sums: [rows, PANEL]; all_bias: of all outputs."""
    bias = all_bias[panel * PANEL : (panel + 1) * PANEL]
    for row in range(rows):
        target = y[first + row, panel * PANEL : (panel + 1) * PANEL]
        if has_bias:
            # Rounded before, as a bias that is added to what was stored.
            for k in range(PANEL):
                store(target, k, sums[row, k])
            for k in range(PANEL):
                store(target, k, load(target[k]) + load(bias[k]))
        else:
            for k in range(PANEL):
                store(target, k, sums[row, k])


@threads.worker
def multiply_work(pointer: Any) -> None:  # pragma: no cover - compiled
    """Takes panels, for each group of tiles, until none is left."""
    a = threads.told(pointer, _NUM_ARGUMENTS)
    num_tokens, in_features = a[_NUM_TOKENS], a[_IN_FEATURES]
    num_panels, num_tiles = a[_NUM_PANELS], a[_NUM_TILES]
    tiles = threads.array(a[_TILES], a, (num_tiles, 3))
    sums_at = a[_SCRATCH] + threads.take(a, _THREAD) * (_SCRATCH_SIZE * 4)
    wide_at = sums_at + _SUMS_SIZE * 4
    all_sums = threads.array(sums_at, FLOATS, (_GROUP_TILES, _LARGEST, PANEL))
    wide = threads.array(wide_at, FLOATS, (_PART * PANEL,))
    y = threads.array(a[_Y], BITS, (num_tokens, num_panels * PANEL))
    has_bias = a[BIAS] != 0
    bias = threads.array(a[BIAS] if has_bias else a[_Y], BITS, (num_panels * PANEL,))
    panel_size = in_features * PANEL
    num_groups = (num_tiles + _GROUP_TILES - 1) // _GROUP_TILES
    while True:
        task = threads.take(a, _NEXT)
        if task >= num_panels * num_groups:
            return
        group, panel = task // num_panels, task % num_panels
        weights_at = a[WEIGHTS] + panel * panel_size * 2
        if num_tiles <= _FEW_TILES:
            for tile in range(num_tiles):
                first, rows = tiles[tile, 0], tiles[tile, 1]
                inputs = a[_X] + tiles[tile, 2] * (in_features * 4)
                if rows == 1:
                    tile_1(inputs, weights_at, sums_at, in_features)
                elif rows == 2:
                    tile_2(inputs, weights_at, sums_at, in_features)
                elif rows == 4:
                    tile_4(inputs, weights_at, sums_at, in_features)
                elif rows == 6:
                    tile_6(inputs, weights_at, sums_at, in_features)
                elif rows == 8:
                    tile_8(inputs, weights_at, sums_at, in_features)
                else:
                    tile_12(inputs, weights_at, sums_at, in_features)
                count = min(rows, num_tokens - first)
                _store_tile(all_sums[0], count, y, first, panel, bias, has_bias)
            continue
        first_tile = group * _GROUP_TILES
        end_tile = min(first_tile + _GROUP_TILES, num_tiles)
        all_sums[: end_tile - first_tile] = np.float32(0.0)
        for begin in range(0, in_features, _PART):
            size = min(_PART, in_features - begin)
            # An array of its own: indices that could be negative keep loops from vector units.
            part = threads.array(weights_at + begin * PANEL * 2, BITS, (size * PANEL,))
            for k in range(size * PANEL):
                wide[k] = load(part[k])
            for tile in range(first_tile, end_tile):
                rows = tiles[tile, 1]
                inputs = a[_X] + (tiles[tile, 2] * in_features + begin * rows) * 4
                target = sums_at + (tile - first_tile) * (_LARGEST * PANEL * 4)
                if rows == 6:
                    wide_tile_6(inputs, wide_at, target, size)
                elif rows == 8:
                    wide_tile_8(inputs, wide_at, target, size)
                else:
                    wide_tile_12(inputs, wide_at, target, size)
        for tile in range(first_tile, end_tile):
            first = tiles[tile, 0]
            count = min(tiles[tile, 1], num_tokens - first)
            _store_tile(all_sums[tile - first_tile], count, y, first, panel, bias, has_bias)
