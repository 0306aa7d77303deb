"""What the base GEMM's workers are told, whatever the layout of the weights, and their buffers."""

from __future__ import annotations

import torch

from kernels.cpu.floats import aligned_floats
from kernels.linear.half_tile import PANEL as WIDEST
from kernels.linear.half_tile import RUN
from kernels.linear.tiling import SIZES, num_rows, tiles_of

GROUP_TILES = 6
"""Tiles that go through a panel together: their inputs and sums stay in the caches."""
PART = 128
"""Inputs of a panel that are widened at once: what a first-level cache holds beside the tile's."""
CHUNK = 256
"""Features that a thread interleaves at once."""
SUMS_SIZE = GROUP_TILES * SIZES[-1] * WIDEST
SCRATCH_SIZE = SUMS_SIZE + PART * WIDEST
"""float32 for each thread: sums of a group's tiles, each [rows, panel]; a part [PART, panel]; for
the widest panels of all layouts."""

(
    I_NEXT,
    _,
    I_NUM_TOKENS,
    I_FEATURES,
    I_NUM_TILES,
    I_TILES,
    I_X,
    I_OUT,
    I_NUM_ARGUMENTS,
) = range(9)


def interleave_arguments(num_tokens: int, features: int, x: int, out: int) -> tuple[int, ...]:
    """What an interleaving worker is told. x: address of [num_tokens, features] bfloat16. out:
    address of `interleaved_size` times 4 bytes."""
    tiles = tiles_of(num_tokens)
    return (0, 0, num_tokens, features, len(tiles), tiles.ctypes.data, x, out)


def interleaved_size(num_tokens: int, in_features: int) -> int:
    """Elements of 4 bytes that interleaved inputs take in the larger layout: of each tile rows of
    whole runs, then of each row what its sums are scaled with."""
    return num_rows(num_tokens) * (-(-in_features // RUN) * RUN + 1)


(
    THREAD,
    NEXT,
    NUM_TOKENS,
    IN_FEATURES,
    NUM_PANELS,
    NUM_TILES,
    TILES,
    X,
    WEIGHTS,
    BIAS,
    SCRATCH,
    Y,
    AFTER,
    NUM_ARGUMENTS,
) = range(14)


def multiply_arguments(
    num_tokens: int,
    in_features: int,
    num_panels: int,
    x: int,
    weights: int,
    bias: int,
    y: int,
) -> tuple[int, ...]:
    """What a multiplying worker is told. x: address of interleaved inputs; weights: of panels;
    bias: of as many bfloat16 as outputs, or 0; y: of [num_tokens, outputs] bfloat16. Once these are
    made, no more threads may run than torch has now. AFTER, 0 here: the address of the panels that
    are read next, if they are others."""
    tiles = tiles_of(num_tokens)
    scratch.grow(0)
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
        scratch.threads.ctypes.data,
        y,
        0,
    )


(
    S_THREAD,
    _,
    S_COUNT,
    S_BLOCKS,
    S_SCRATCH,
    S_NUM_ARGUMENTS,
) = range(6)


def several_arguments(count: int, blocks: int) -> tuple[int, ...]:
    """What a worker is told that does several products, one after the other without a meeting in
    between. count: address of their number; blocks: of the arguments of each, [number,
    I_NUM_ARGUMENTS] to interleave or [number, NUM_ARGUMENTS] to multiply. Threads as in
    `multiply_arguments`."""
    scratch.grow(0)
    return (0, 0, count, blocks, scratch.threads.ctypes.data)


class _Scratch:
    """Buffers kept between calls (one engine thread), grown as needed."""

    def __init__(self) -> None:
        self.x = aligned_floats(0)
        self.threads = aligned_floats(0)

    def grow(self, inputs: int) -> None:
        if self.x.size < inputs:
            self.x = aligned_floats(inputs)
        size = torch.get_num_threads() * SCRATCH_SIZE
        if self.threads.size < size:
            self.threads = aligned_floats(size)


scratch = _Scratch()
