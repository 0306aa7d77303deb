"""The product with a quantised matrix in Triton, which reads its codes: CUDA and ROCm."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import Settings, launch_options, tuned
from kernels.quantized.matrix import QuantizedMatrix
from kernels.quantized.triton_weights import (
    MATRIX_POINTERS,
    dequantize,
    groups_of,
    weight_constants,
    weight_sizes,
    weight_tensors,
    weight_tile,
)

TILES = (16, 32, 64)
"""Tokens of a tile: the smallest that holds all, or several of the largest."""
_MOST_ROWS = 1 << 18
"""Dequantised at once: blocks of them are a grid's second dimension, which ends at 65,535."""


@triton.jit(
    do_not_specialize=["num_tokens", "blocks_per_split"],
    do_not_specialize_on_alignment=[*MATRIX_POINTERS, "bias_ptr"],
)
def linear_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    groups_ptr,
    bias_ptr,
    y_ptr,
    num_tokens,
    x_stride,
    blocks_per_split,
    outputs,
    inputs,
    row_bytes,
    group_size,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FORM: tl.constexpr,
    PART: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """grid (tiles of tokens, blocks of outputs, splits of inputs). One program: one tile of y over
    its split's inputs, float32, from weights rounded to x's dtype; with the bias where there is
    one split alone.

    y: [splits, num_tokens, outputs], float32 where there are several
    """
    m = tl.program_id(0) * BLOCK_M
    n = tl.program_id(1) * BLOCK_N
    present = (m + tl.arange(0, BLOCK_M) < num_tokens)[:, None]
    x_ptr += m.to(tl.int64) * x_stride
    x_rows = tl.arange(0, BLOCK_M)[:, None] * x_stride
    begin = tl.program_id(2) * blocks_per_split
    end = tl.minimum(begin + blocks_per_split, tl.cdiv(inputs, BLOCK_K))
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    next_scales, next_zeros = groups_of(
        scales_ptr, zeros_ptr, groups_ptr, begin * BLOCK_K, n, outputs, inputs, group_size,
        BLOCK_N, BLOCK_K, PART, HAS_ZEROS, HAS_INDEX,
    )  # fmt: skip
    for block in range(begin, end):
        k = block * BLOCK_K
        # A block ahead, unless there are too many: the compiler makes no asynchronous copies of few
        # bytes. Of the last block nobody reads what comes next.
        scales, zeros = next_scales, next_zeros
        ahead = k + BLOCK_K if PART > 0 else k
        next_scales, next_zeros = groups_of(
            scales_ptr, zeros_ptr, groups_ptr, ahead, n, outputs, inputs, group_size,
            BLOCK_N, BLOCK_K, PART, HAS_ZEROS, HAS_INDEX,
        )  # fmt: skip
        if PART < 1:
            scales, zeros = next_scales, next_zeros
        columns = k + tl.arange(0, BLOCK_K)[None, :]
        x = tl.load(x_ptr + x_rows + columns, present & (columns < inputs), 0.0)  # [M, K]
        weights = weight_tile(
            codes_ptr, scales, zeros, block, n, outputs, row_bytes,
            BLOCK_N, BLOCK_K, FORM, PART, HAS_ZEROS,
        )  # fmt: skip
        total = tl.dot(x, tl.trans(weights.to(x.dtype)), total)
    features = n + tl.arange(0, BLOCK_N)
    real = features < outputs
    if HAS_BIAS:
        total += tl.load(bias_ptr + features, mask=real, other=0.0).to(tl.float32)[None, :]
    y_ptr += (tl.program_id(2) * num_tokens + m).to(tl.int64) * outputs
    at = tl.arange(0, BLOCK_M).to(tl.int64)[:, None] * outputs + features[None, :]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=present & real[None, :])


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["bias_ptr"])
def add_splits_kernel(
    parts_ptr,
    bias_ptr,
    y_ptr,
    num_tokens,
    outputs,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """grid (tokens, blocks of outputs). One program: BLOCK outputs of one token, of parts that are
    added in order, rounded once. parts: [SPLITS, num_tokens, outputs] float32"""
    token = tl.program_id(0).to(tl.int64)
    features = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = features < outputs
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):  # pyright: ignore[reportGeneralTypeIssues]
        row = parts_ptr + (split * num_tokens + token) * outputs
        total += tl.load(row + features, mask=real, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + features, mask=real, other=0.0).to(tl.float32)
    tl.store(y_ptr + token * outputs + features, total.to(y_ptr.dtype.element_ty), mask=real)


def linear(x: torch.Tensor, weight: QuantizedMatrix, bias: torch.Tensor | None) -> torch.Tensor:
    """As `kernels.quantized.op.linear`. The launches depend on shapes only; no host sync. Beside y
    it takes some scratch, whose size depends on shapes only, too."""
    if not len(x):
        return x.new_empty(0, weight.shape[0])
    if x.stride(1) != 1:
        x = x.contiguous()
    few = tuned("quantized", device_name(x.device), "regime", "any")["fused_tokens"]
    if x.dtype is torch.float32 or len(x) > few:
        return _dequantized(x, weight, bias)
    return _fused(x, weight, bias)


def tile_tokens(num_tokens: int) -> int:
    return next((size for size in TILES if num_tokens <= size), TILES[-1])


def split_inputs(num_tokens: int, outputs: int, inputs: int, settings: Settings) -> tuple[int, int]:
    """(splits, blocks of inputs of each): as many as make the programs that the table wants, each
    with as many inputs as it wants at least."""
    block_k = settings["block_k"]
    tiles = triton.cdiv(num_tokens, tile_tokens(num_tokens))
    tiles *= triton.cdiv(outputs, settings["block_n"])
    longest = max(1, inputs // settings["min_split"])
    wanted = max(1, min(settings["programs"] // tiles, longest))
    blocks = triton.cdiv(inputs, block_k)
    each = triton.cdiv(blocks, wanted)
    return triton.cdiv(blocks, each), each


def _fused(x: torch.Tensor, weight: QuantizedMatrix, bias: torch.Tensor | None) -> torch.Tensor:
    num_tokens = len(x)
    outputs, inputs = weight.shape
    device, tile = device_name(x.device), tile_tokens(num_tokens)
    settings = tuned("quantized", device, "linear", f"{tile}x{weight.bits}")
    splits, blocks_per_split = split_inputs(num_tokens, outputs, inputs, settings)
    y = x.new_empty(num_tokens, outputs)
    target = y
    if splits > 1:
        target = x.new_empty(splits, num_tokens, outputs, dtype=torch.float32)
    block_n, block_k = settings["block_n"], settings["block_k"]
    grid = (triton.cdiv(num_tokens, tile), triton.cdiv(outputs, block_n), splits)
    launch: Any = linear_kernel[grid]
    launch(
        x,
        *weight_tensors(weight),
        x if bias is None else bias,
        target,
        num_tokens,
        x.stride(0),
        blocks_per_split,
        *weight_sizes(weight),
        BLOCK_M=tile,
        BLOCK_N=block_n,
        **weight_constants(weight, block_k),
        HAS_BIAS=bias is not None and splits == 1,
        **launch_options(settings),
    )
    if splits > 1:
        added = tuned("quantized", device, "add_splits", "any")
        launch = add_splits_kernel[num_tokens, triton.cdiv(outputs, added["block"])]
        launch(
            target,
            x if bias is None else bias,
            y,
            num_tokens,
            outputs,
            SPLITS=splits,
            BLOCK=added["block"],
            HAS_BIAS=bias is not None,
            **launch_options(added),
        )
    return y


def _dequantized(
    x: torch.Tensor, weight: QuantizedMatrix, bias: torch.Tensor | None
) -> torch.Tensor:
    """By rows of the matrix, so that what they are dequantised into is bounded."""
    outputs, inputs = weight.shape
    settings = tuned("quantized", device_name(x.device), "regime", "any")
    at_once = min(max(1, settings["scratch_elems"] // inputs), outputs, _MOST_ROWS)
    scratch = x.new_empty(at_once, inputs)
    if at_once == outputs:
        dequantize(weight, 0, scratch)
        return F.linear(x, scratch, bias)
    y = x.new_empty(len(x), outputs)
    for first in range(0, outputs, at_once):
        rows = slice(first, min(first + at_once, outputs))
        part = scratch[: rows.stop - first]
        dequantize(weight, first, part)
        if bias is None:
            torch.mm(x, part.T, out=y[:, rows])
        else:
            torch.addmm(bias[rows], x, part.T, out=y[:, rows])
    return y
