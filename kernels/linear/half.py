"""Weights and products in float16: for processors with AVX512-FP16.

float16 has more bits than bfloat16 but a small range. So each output feature's weights are stored
times a power of two, and each token's inputs are multiplied with one, such that the largest of them
is just below 2**5: no run of products can overflow, and what is lost of small ones is below 2**-22
of the largest. Results are scaled back in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.floats import (
    BITS,
    FLOATS,
    WORDS,
    load,
    pair_of_halves,
    store,
)
from kernels.linear import arguments as args
from kernels.linear.half_tile import (
    PANEL,
    RUN,
    tile_1,
    tile_2,
    tile_4,
    tile_6,
    tile_8,
    tile_12,
)
from kernels.linear.magnitude import largest_magnitude
from kernels.linear.tiling import SIZES

_LARGEST = SIZES[-1]
_LIMIT_EXPONENT = 5
"""RUN products of numbers below 2**5 are below 2**15; float16 ends at 2**16."""
assert RUN * 4**_LIMIT_EXPONENT < 2**16
_PART = 1024
"""Inputs of a panel that all tiles of a group go through before the next: what a second-level cache
holds. Whole runs, so that sums don't depend on it."""
assert _PART % RUN == args.CHUNK % RUN == 0
_SCALE_ROWS = 2
"""Rows of float16 after a panel's inputs that hold PANEL float32: what its sums are scaled with."""
_PACKED_AT_ONCE = 16  # panels: bounds what packing takes beside the result


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] bfloat16 -> [out / PANEL, in + _SCALE_ROWS, PANEL] float16"""
    num_panels, in_features = weight.shape[0] // PANEL, weight.shape[1]
    panels = torch.empty(num_panels, in_features + _SCALE_ROWS, PANEL, dtype=torch.float16)
    for begin in range(0, num_panels, _PACKED_AT_ONCE):
        some = panels[begin : begin + _PACKED_AT_ONCE]
        rows = weight[begin * PANEL : (begin + len(some)) * PANEL].float()
        scale = _scale_of(rows)
        some[:, :in_features] = (rows * scale).view(-1, PANEL, in_features).transpose(1, 2)
        some[:, in_features:] = (1 / scale).view(torch.float16).view(-1, _SCALE_ROWS, PANEL)
    return panels


def unpack(panels: torch.Tensor) -> torch.Tensor:
    """As before `pack`, but for the lowest bits of what is below 2**-22 of an output feature's
    largest weight."""
    in_features = features_of(panels)
    scale = panels[:, in_features:].reshape(-1, _SCALE_ROWS * PANEL).view(torch.float32)
    rows = panels[:, :in_features].float() * scale[:, None]
    return rows.transpose(1, 2).reshape(-1, in_features).bfloat16()


def features_of(panels: torch.Tensor) -> int:
    """Input features."""
    return panels.shape[1] - _SCALE_ROWS


def _scale_of(rows: torch.Tensor) -> torch.Tensor:
    """[rows, 1] float32: the power of two that brings the largest of each just below the limit; 1
    where there is none."""
    largest = rows.abs().amax(1, keepdim=True)
    exponent = torch.frexp(largest).exponent
    # Kept away from the ends, so that its reciprocal is a number, too.
    biased = (127 + _LIMIT_EXPONENT - exponent).clamp(1, 253)
    biased.masked_fill_((largest == 0) | ~largest.isfinite(), 127)
    return (biased << 23).view(torch.float32)


@compiled
def _biased_scale(row: Any) -> Any:  # pragma: no cover - compiled
    """row: bits of bfloat16. As `_scale_of`, as a biased exponent."""
    exponent = largest_magnitude(row) >> 7
    if exponent == 0 or exponent == 255:  # at most what bfloat16 hardly holds, or no number
        return np.int64(127)
    return min(253 + _LIMIT_EXPONENT - exponent, np.int64(253))


@compiled
def _power(biased: Any) -> Any:  # pragma: no cover - compiled
    return load(np.uint16(biased << 7))


@compiled
def _interleave(a: Any) -> None:  # pragma: no cover - compiled
    """Takes chunks of tiles' features until none is left, and makes them [runs, rows, RUN] of
    float16 that stand twice side by side."""
    num_tokens, features, num_tiles = a[args.I_NUM_TOKENS], a[args.I_FEATURES], a[args.I_NUM_TILES]
    tiles = threads.array(a[args.I_TILES], a, (num_tiles, 3))
    all_rows = tiles[num_tiles - 1, 1] + tiles[num_tiles - 1, 2]
    padded = (features + RUN - 1) // RUN * RUN
    scales = threads.array(a[args.I_OUT] + all_rows * padded * 4, FLOATS, (all_rows,))
    num_chunks = (features + args.CHUNK - 1) // args.CHUNK
    while True:
        task = threads.take(a, args.I_NEXT)
        if task >= num_tiles * num_chunks:
            return
        tile, chunk = task // num_chunks, task % num_chunks
        begin, end = chunk * args.CHUNK, min((chunk + 1) * args.CHUNK, features)
        first, rows, before = tiles[tile, 0], tiles[tile, 1], tiles[tile, 2]
        for row in range(rows):
            # What stands for no token stays as it is: nobody reads its sums.
            if first + row >= num_tokens:
                break
            source_at = a[args.I_X] + (first + row) * features * 2
            biased = _biased_scale(threads.array(source_at, BITS, (features,)))
            if chunk == 0:
                scales[before + row] = _power(254 - biased)
            scale = _power(biased)
            for run in range(begin, end, RUN):
                size = min(RUN, end - run)
                source = threads.array(source_at + run * 2, BITS, (size,))
                at = a[args.I_OUT] + (before * padded + run * rows + row * RUN) * 4
                out = threads.array(at, WORDS, (size,))
                for k in range(size):
                    out[k] = pair_of_halves(load(source[k]) * scale)


@compiled
def _store_tile(
    sums: Any, rows: Any, scales: Any, scale: Any, y: Any, first: Any, bias: Any, has_bias: Any
) -> None:  # pragma: no cover - compiled
    """sums: [rows, PANEL]; scales: of each row; scale: [PANEL]; y: [tokens, PANEL] of all outputs;
    bias: [PANEL]."""
    for row in range(rows):
        target = y[first + row]
        for k in range(PANEL):
            store(target, k, sums[row, k] * scales[row] * scale[k])
        if has_bias:  # after rounding, as a bias that is added to what was stored
            for k in range(PANEL):
                store(target, k, load(target[k]) + load(bias[k]))


@compiled
def _multiply(a: Any, sums_at: Any) -> None:  # pragma: no cover - compiled
    """Takes panels, for each group of tiles, until none is left."""
    num_tokens, in_features = a[args.NUM_TOKENS], a[args.IN_FEATURES]
    num_panels, num_tiles = a[args.NUM_PANELS], a[args.NUM_TILES]
    tiles = threads.array(a[args.TILES], a, (num_tiles, 3))
    all_rows = tiles[num_tiles - 1, 1] + tiles[num_tiles - 1, 2]
    padded = (in_features + RUN - 1) // RUN * RUN
    scales = threads.array(a[args.X] + all_rows * padded * 4, FLOATS, (all_rows,))
    all_sums = threads.array(sums_at, FLOATS, (args.GROUP_TILES, _LARGEST, PANEL))
    y = threads.array(a[args.Y], BITS, (num_tokens, num_panels, PANEL))
    has_bias = a[args.BIAS] != 0
    bias = threads.array(a[args.BIAS] if has_bias else a[args.Y], BITS, (num_panels, PANEL))
    panel_bytes = (in_features + _SCALE_ROWS) * PANEL * 2
    num_groups = (num_tiles + args.GROUP_TILES - 1) // args.GROUP_TILES
    while True:
        task = threads.take(a, args.NEXT)
        if task >= num_panels * num_groups:
            return
        group, panel = task // num_panels, task % num_panels
        weights_at = a[args.WEIGHTS] + panel * panel_bytes
        scale = threads.array(weights_at + in_features * PANEL * 2, FLOATS, (PANEL,))
        first_tile = group * args.GROUP_TILES
        end_tile = min(first_tile + args.GROUP_TILES, num_tiles)
        all_sums[: end_tile - first_tile] = np.float32(0.0)
        for begin in range(0, in_features, _PART):
            size = min(_PART, in_features - begin)
            part_at = weights_at + begin * PANEL * 2
            for tile in range(first_tile, end_tile):
                rows = tiles[tile, 1]
                inputs = a[args.X] + (tiles[tile, 2] * padded + begin * rows) * 4
                target = sums_at + (tile - first_tile) * (_LARGEST * PANEL * 4)
                if rows == 1:
                    tile_1(inputs, part_at, target, size)
                elif rows == 2:
                    tile_2(inputs, part_at, target, size)
                elif rows == 4:
                    tile_4(inputs, part_at, target, size)
                elif rows == 6:
                    tile_6(inputs, part_at, target, size)
                elif rows == 8:
                    tile_8(inputs, part_at, target, size)
                else:
                    tile_12(inputs, part_at, target, size)
        for tile in range(first_tile, end_tile):
            first, before = tiles[tile, 0], tiles[tile, 2]
            count = min(tiles[tile, 1], num_tokens - first)
            of_rows = scales[before : before + count]
            sums = all_sums[tile - first_tile]
            _store_tile(sums, count, of_rows, scale, y[:, panel], first, bias[panel], has_bias)


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
