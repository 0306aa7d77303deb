"""Weights in bfloat16, products in float32: for processors with AVX-512.

Without AMX such a processor multiplies float32 twice as fast as bfloat16, and a decode step is
bound by the bytes of the weights. So weights stay bfloat16 in memory, are widened on their way to
the registers, and products are float32. A panel is PANEL output features, all inputs, one after the
other: what one tile of tokens reads in order. For many tiles a part of a panel is widened once,
into the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.floats import BITS, FLOATS, load
from kernels.linear import arguments as args
from kernels.linear.stored import store_tile
from kernels.linear.tile import (
    PANEL,
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
from kernels.linear.tiling import FEW_TILES, SIZES

_LARGEST = SIZES[-1]


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] -> [out / PANEL, in, PANEL]"""
    return weight.view(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def unpack(panels: torch.Tensor) -> torch.Tensor:
    """[out / PANEL, in, PANEL] -> [out, in]"""
    return panels.transpose(1, 2).reshape(-1, panels.shape[1])


@compiled
def _interleave(a: Any) -> None:  # pragma: no cover - compiled
    """Takes chunks of tiles' features until none is left, and widens them to [features, rows]."""
    num_tokens, features, num_tiles = a[args.I_NUM_TOKENS], a[args.I_FEATURES], a[args.I_NUM_TILES]
    tiles = threads.array(a[args.I_TILES], a, (num_tiles, 3))
    x = threads.array(a[args.I_X], BITS, (num_tokens, features))
    num_chunks = (features + args.CHUNK - 1) // args.CHUNK
    while True:
        task = threads.take(a, args.I_NEXT)
        if task >= num_tiles * num_chunks:
            return
        tile, chunk = task // num_chunks, task % num_chunks
        begin, end = chunk * args.CHUNK, min((chunk + 1) * args.CHUNK, features)
        first, rows = tiles[tile, 0], tiles[tile, 1]
        out = threads.array(a[args.I_OUT] + tiles[tile, 2] * features * 4, FLOATS, (features, rows))
        for row in range(rows):
            if first + row < num_tokens:
                source = x[first + row]
                for k in range(begin, end):
                    out[k, row] = load(source[k])
            else:
                for k in range(begin, end):
                    out[k, row] = np.float32(0.0)


@compiled
def _multiply(a: Any, sums_at: Any) -> None:  # pragma: no cover - compiled
    """Takes panels, for each group of tiles, until none is left."""
    num_tokens, in_features = a[args.NUM_TOKENS], a[args.IN_FEATURES]
    num_panels, num_tiles = a[args.NUM_PANELS], a[args.NUM_TILES]
    tiles = threads.array(a[args.TILES], a, (num_tiles, 3))
    wide_at = sums_at + args.SUMS_SIZE * 4
    all_sums = threads.array(sums_at, FLOATS, (args.GROUP_TILES, _LARGEST, PANEL))
    wide = threads.array(wide_at, FLOATS, (args.PART * PANEL,))
    y_step = num_panels * PANEL * 2
    panel_size = in_features * PANEL
    num_groups = (num_tiles + args.GROUP_TILES - 1) // args.GROUP_TILES
    while True:
        task = threads.take(a, args.NEXT)
        if task >= num_panels * num_groups:
            return
        group, panel = task // num_panels, task % num_panels
        weights_at = a[args.WEIGHTS] + panel * panel_size * 2
        y_at = a[args.Y] + panel * (PANEL * 2)
        bias_at = a[args.BIAS] + panel * (PANEL * 2) if a[args.BIAS] != 0 else 0
        if num_tiles <= FEW_TILES:
            for tile in range(num_tiles):
                first, rows = tiles[tile, 0], tiles[tile, 1]
                inputs = a[args.X] + tiles[tile, 2] * (in_features * 4)
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
                store_tile(sums_at, y_at + first * y_step, y_step, count, bias_at, PANEL)
            continue
        first_tile = group * args.GROUP_TILES
        end_tile = min(first_tile + args.GROUP_TILES, num_tiles)
        all_sums[: end_tile - first_tile] = np.float32(0.0)
        for begin in range(0, in_features, args.PART):
            size = min(args.PART, in_features - begin)
            # An array of its own: indices that could be negative keep loops from vector units.
            part = threads.array(weights_at + begin * PANEL * 2, BITS, (size * PANEL,))
            for k in range(size * PANEL):
                wide[k] = load(part[k])
            for tile in range(first_tile, end_tile):
                rows = tiles[tile, 1]
                inputs = a[args.X] + (tiles[tile, 2] * in_features + begin * rows) * 4
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
            of_tile = sums_at + (tile - first_tile) * (_LARGEST * PANEL * 4)
            store_tile(of_tile, y_at + first * y_step, y_step, count, bias_at, PANEL)


@threads.worker
def interleave_work(pointer: Any) -> None:  # pragma: no cover - compiled
    _interleave(threads.told(pointer, args.I_NUM_ARGUMENTS))


@threads.worker
def interleave_several_work(pointer: Any) -> None:  # pragma: no cover - compiled
    a = threads.told(pointer, args.S_NUM_ARGUMENTS)
    count = threads.array(a[args.S_COUNT], a, (1,))[0]
    blocks = threads.array(a[args.S_BLOCKS], a, (count, args.I_NUM_ARGUMENTS))
    for index in range(count):
        _interleave(blocks[index])


@threads.worker
def multiply_work(pointer: Any) -> None:  # pragma: no cover - compiled
    a = threads.told(pointer, args.NUM_ARGUMENTS)
    thread = threads.take(a, args.THREAD)
    _multiply(a, a[args.SCRATCH] + thread * (args.SCRATCH_SIZE * 4))


@threads.worker
def multiply_several_work(pointer: Any) -> None:  # pragma: no cover - compiled
    a = threads.told(pointer, args.S_NUM_ARGUMENTS)
    thread = threads.take(a, args.S_THREAD)
    count = threads.array(a[args.S_COUNT], a, (1,))[0]
    blocks = threads.array(a[args.S_BLOCKS], a, (count, args.NUM_ARGUMENTS))
    for index in range(count):
        _multiply(blocks[index], a[args.S_SCRATCH] + thread * (args.SCRATCH_SIZE * 4))
