"""Weights and products in bfloat16, sums in float32: for processors with a fast AVX512-BF16.

One instruction multiplies two input features of sixteen outputs and adds both products to float32
sums, in the time of one of float32. So weights stand in pairs: a panel is PANEL output features,
all pairs of inputs, one after the other. Inputs are read as they stand, since a row is pairs
already. Numbers and results below 2**-126 count as 0 there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.floats import FLOATS
from kernels.linear import arguments as args
from kernels.linear.pair_tile import (
    PANEL,
    tile_1,
    tile_2,
    tile_4,
    tile_6,
    tile_8,
    tile_12,
)
from kernels.linear.stored import store_tile
from kernels.linear.tiling import SIZES

_LARGEST = SIZES[-1]
_PART = 512
"""Pairs of a panel that all tiles of a group go through before the next: what a second-level cache
holds."""


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] bfloat16, in even -> [out / PANEL, in / 2, PANEL] int32"""
    pairs = weight.contiguous().view(torch.int32)
    return pairs.view(-1, PANEL, pairs.shape[1]).transpose(1, 2).contiguous()


def unpack(panels: torch.Tensor) -> torch.Tensor:
    """[out / PANEL, in / 2, PANEL] int32 -> [out, in] bfloat16"""
    return panels.transpose(1, 2).reshape(-1, panels.shape[1]).view(torch.bfloat16)


def features_of(panels: torch.Tensor) -> int:
    """Input features."""
    return panels.shape[1] * 2


@compiled
def _multiply(a: Any, sums_at: Any) -> None:  # pragma: no cover - compiled
    """Takes panels, for each group of tiles, until none is left."""
    num_tokens, pairs = a[args.NUM_TOKENS], a[args.IN_FEATURES] // 2
    num_panels, num_tiles = a[args.NUM_PANELS], a[args.NUM_TILES]
    tiles = threads.array(a[args.TILES], a, (num_tiles, 3))
    all_sums = threads.array(sums_at, FLOATS, (args.GROUP_TILES, _LARGEST, PANEL))
    x_step, y_step = pairs * 4, num_panels * PANEL * 2
    num_groups = (num_tiles + args.GROUP_TILES - 1) // args.GROUP_TILES
    following = threads.take(a, args.NEXT)
    while following < num_panels * num_groups:
        group, panel = following // num_panels, following % num_panels
        following = threads.take(a, args.NEXT)
        weights_at = a[args.WEIGHTS] + panel * pairs * PANEL * 4
        y_at = a[args.Y] + panel * (PANEL * 2)
        bias_at = a[args.BIAS] + panel * (PANEL * 2) if a[args.BIAS] != 0 else 0
        next_at = a[args.WEIGHTS] + following % num_panels * pairs * PANEL * 4
        if following >= num_panels * num_groups and a[args.AFTER] != 0:
            next_at = a[args.AFTER]
        first_tile = group * args.GROUP_TILES
        end_tile = min(first_tile + args.GROUP_TILES, num_tiles)
        # While its tiles go through a part they ask for the next one, each for its share.
        pace = (PANEL * 4 + end_tile - first_tile - 1) // (end_tile - first_tile)
        all_sums[: end_tile - first_tile] = np.float32(0.0)
        for begin in range(0, pairs, _PART):
            size = min(_PART, pairs - begin)
            part_at = weights_at + begin * PANEL * 4
            next_part = part_at + size * PANEL * 4 if begin + size < pairs else next_at
            for tile in range(first_tile, end_tile):
                first, rows = tiles[tile, 0], tiles[tile, 1]
                count = min(rows, num_tokens - first)
                inputs = a[args.X] + (first * pairs + begin) * 4
                target = sums_at + (tile - first_tile) * (_LARGEST * PANEL * 4)
                ahead = next_part + (tile - first_tile) * size * pace
                if rows == 1:
                    tile_1(inputs, x_step, count, part_at, target, size, ahead, pace)
                elif rows == 2:
                    tile_2(inputs, x_step, count, part_at, target, size, ahead, pace)
                elif rows == 4:
                    tile_4(inputs, x_step, count, part_at, target, size, ahead, pace)
                elif rows == 6:
                    tile_6(inputs, x_step, count, part_at, target, size, ahead, pace)
                elif rows == 8:
                    tile_8(inputs, x_step, count, part_at, target, size, ahead, pace)
                else:
                    tile_12(inputs, x_step, count, part_at, target, size, ahead, pace)
        for tile in range(first_tile, end_tile):
            first = tiles[tile, 0]
            count = min(tiles[tile, 1], num_tokens - first)
            of_tile = sums_at + (tile - first_tile) * (_LARGEST * PANEL * 4)
            store_tile(of_tile, y_at + first * y_step, y_step, count, bias_at, PANEL)


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
