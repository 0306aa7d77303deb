"""Tiles of a quantised matrix in Triton, as `QuantizedMatrix.dequantize` defines them, to the bit;
and the kernel that stores all of them. CUDA and ROCm."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.gpu.dispatch import device_name
from kernels.gpu.staging import staged
from kernels.gpu.tuning import launch_options, tuned
from kernels.quantized.matrix import TABLES, QuantizedMatrix

_FORMS = {"uint4": 0, "uint8": 1, "float8_e4m3": 2, "nf4": 3, "fp4": 3}
UINT4, UINT8, FLOAT8 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

MATRIX_POINTERS = ("scales_ptr", "zeros_ptr", "groups_ptr", "table_ptr")
"""Beside the codes: where they lie compiles nothing anew."""
# An integer below 2**23 in the low bits of this float is added to it, exactly.
_BIG_BITS = tl.constexpr(0x4B000000)
_BIG = tl.constexpr(8388608.0)


@triton.jit
def group_values(
    ptr,
    k,
    outputs,
    inputs,
    group_size,
    rows,
    real,
    groups_ptr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
    HAS_INDEX: tl.constexpr,
):
    """[num_groups, outputs] at ptr -> of each weight of a tile, or one for all of a row: what
    broadcasts to [BLOCK_N, BLOCK_K]. rows: int64 [BLOCK_N]. PART: inputs of the tile that are in
    one group; 0: any."""
    if PART == 0:
        columns = k + tl.arange(0, BLOCK_K)
        inside = columns < inputs
        if HAS_INDEX:
            group = tl.load(groups_ptr + columns, mask=inside, other=0)
        else:
            group = columns // group_size
        at = group.to(tl.int64)[None, :] * outputs + rows[:, None]
        values = tl.load(ptr + at, mask=real[:, None] & inside[None, :], other=0)  # [N, K]
    else:
        first = k // group_size
        if PART == BLOCK_K:
            values = tl.load(ptr + first.to(tl.int64) * outputs + rows, mask=real, other=0)
            values = values[:, None]  # [N, 1]
        else:
            COUNT: tl.constexpr = BLOCK_K // PART
            group = first + tl.arange(0, COUNT)
            inside = group * group_size < inputs
            at = group.to(tl.int64)[None, :] * outputs + rows[:, None]
            few = tl.load(ptr + at, mask=real[:, None] & inside[None, :], other=0)  # [N, COUNT]
            values = tl.broadcast_to(few[:, :, None], [BLOCK_N, COUNT, PART])
            values = tl.reshape(values, [BLOCK_N, BLOCK_K])
    return values


@triton.jit
def weight_tile(
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    groups_ptr,
    table_ptr,
    n,
    k,
    outputs,
    inputs,
    row_bytes,
    group_size,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FORM: tl.constexpr,
    PART: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
):
    """[BLOCK_N, BLOCK_K] float32: weights of outputs n, n + 1, … and inputs k, k + 1, …; numbers
    past the last ones. n, k: int32; k: a multiple of BLOCK_K."""
    here = tl.arange(0, BLOCK_N)
    real = n + here < outputs
    rows = n.to(tl.int64) + here
    codes_ptr += n.to(tl.int64) * row_bytes
    if FORM == UINT8 or FORM == FLOAT8:
        at = k + tl.arange(0, BLOCK_K)
        mask = real[:, None] & (at < row_bytes)[None, :]
        code = tl.load(codes_ptr + here[:, None] * row_bytes + at[None, :], mask=mask, other=0)
        code = code.to(tl.int32)  # [N, K]
    else:
        at = k // 2 + tl.arange(0, BLOCK_K // 2)
        mask = real[:, None] & (at < row_bytes)[None, :]
        pairs = tl.load(codes_ptr + here[:, None] * row_bytes + at[None, :], mask=mask, other=0)
        pairs = pairs.to(tl.int32)  # [N, K / 2]
        code = tl.reshape(tl.join(pairs & 15, pairs >> 4), [BLOCK_N, BLOCK_K])
    if FORM == UINT4 or FORM == UINT8:
        if HAS_ZEROS:
            zero = group_values(
                zeros_ptr, k, outputs, inputs, group_size, rows, real, groups_ptr,
                BLOCK_N, BLOCK_K, PART, HAS_INDEX,
            ).to(tl.float32)  # fmt: skip
        else:
            zero = 8.0 if FORM == UINT4 else 128.0
        value = (code | _BIG_BITS).to(tl.float32, bitcast=True) - (zero + _BIG)
    elif FORM == FLOAT8:
        # As float16, with four bits more of range than it needs: also what is subnormal is exact.
        bits = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
        value = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        value = tl.where((code & 0x7F) == 0x7F, float("nan"), value)
    else:
        value = tl.load(table_ptr + code)
    scale = group_values(
        scales_ptr, k, outputs, inputs, group_size, rows, real, groups_ptr,
        BLOCK_N, BLOCK_K, PART, HAS_INDEX,
    )  # fmt: skip
    return value * scale.to(tl.float32)


@triton.jit(do_not_specialize=["first"], do_not_specialize_on_alignment=MATRIX_POINTERS)
def dequantize_kernel(
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    groups_ptr,
    table_ptr,
    out_ptr,
    first,
    end,
    outputs,
    inputs,
    row_bytes,
    group_size,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FORM: tl.constexpr,
    PART: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
):
    """grid (blocks of inputs, blocks of the rows [first, end)). One program: one tile, rounded once.

    out: [end - first, inputs]
    """
    k = tl.program_id(0) * BLOCK_K
    row = tl.program_id(1) * BLOCK_N
    value = weight_tile(
        codes_ptr, scales_ptr, zeros_ptr, groups_ptr, table_ptr, first + row, k, outputs, inputs,
        row_bytes, group_size, BLOCK_N, BLOCK_K, FORM, PART, HAS_ZEROS, HAS_INDEX,
    )  # fmt: skip
    here, columns = tl.arange(0, BLOCK_N), k + tl.arange(0, BLOCK_K)
    out_ptr += row.to(tl.int64) * inputs
    mask = (first + row + here < end)[:, None] & (columns < inputs)[None, :]
    at = here[:, None] * inputs + columns[None, :]
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=mask)


def weight_constants(weight: QuantizedMatrix, block_k: int) -> dict[str, Any]:
    """weight_tile's constexprs but BLOCK_N."""
    size = weight.group_size
    if weight.group_index is not None:
        part = 0
    elif weight.num_groups == 1 or size % block_k == 0:
        part = block_k
    else:
        part = size if block_k % size == 0 else 0
    return {
        "BLOCK_K": block_k,
        "FORM": _FORMS[weight.kind],
        "PART": part,
        "HAS_ZEROS": weight.zeros is not None,
        "HAS_INDEX": weight.group_index is not None,
    }


def weight_tensors(weight: QuantizedMatrix) -> tuple[torch.Tensor, ...]:
    """weight_tile's pointers; what a matrix has not is not read."""
    codes = weight.codes
    return (
        codes,
        weight.scales,
        codes if weight.zeros is None else weight.zeros,
        codes if weight.group_index is None else weight.group_index,
        _table(weight.kind, weight.device) if weight.kind in TABLES else codes,
    )


def weight_sizes(weight: QuantizedMatrix) -> tuple[int, int, int, int]:
    """outputs, inputs, row_bytes and group_size."""
    return (*weight.shape, weight.codes.shape[1], weight.group_size)


@cache
def _table(kind: str, device: torch.device) -> torch.Tensor:
    """[16] float32. Made before graphs are captured, as kernels are compiled."""
    return staged(TABLES[kind], torch.float32, device)


def dequantize(weight: QuantizedMatrix, first: int, out: torch.Tensor) -> None:
    """Writes the rows from `first` on. out: [rows, in] contiguous, of the matrix's dtype."""
    rows, inputs = out.shape
    settings = tuned("quantized", device_name(out.device), "dequantize", str(weight.bits))
    block_n, block_k = settings["block_n"], settings["block_k"]
    launch: Any = dequantize_kernel[triton.cdiv(inputs, block_k), triton.cdiv(rows, block_n)]
    tensors, sizes = weight_tensors(weight), weight_sizes(weight)
    launch(
        *tensors,
        out,
        first,
        first + rows,
        *sizes,
        BLOCK_N=block_n,
        **weight_constants(weight, block_k),
        **launch_options(settings),
    )
