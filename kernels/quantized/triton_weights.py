"""Tiles of a quantised matrix in Triton, as `QuantizedMatrix.dequantize` defines them, to the bit;
and the kernel that stores all of them. CUDA and ROCm."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import launch_options, tuned
from kernels.quantized.matrix import TABLES, QuantizedMatrix

FORMS = {"float8_e4m3": 0, "uint8": 1, "uint4": 2, "nf4": 3, "fp4": 4}
FLOAT8, UINT8, UINT4, NF4, FP4 = (tl.constexpr(form) for form in FORMS.values())

MATRIX_POINTERS = ("scales_ptr", "zeros_ptr", "groups_ptr")
"""Beside the codes: where they lie compiles nothing anew."""
# An integer below 2**23 in the low bits of this float is added to it, exactly.
_BIG_BITS = tl.constexpr(0x4B000000)
_BIG = tl.constexpr(8388608.0)
_NONE, _EIGHT = tl.constexpr(0), tl.constexpr(8)
_NF4_TABLE = tl.constexpr(TABLES["nf4"])
_FP4_TABLE = tl.constexpr(TABLES["fp4"][:8])


@triton.jit
def one_of_eight(code, TABLE: tl.constexpr, start: tl.constexpr):
    """By the three lowest bits. Selections, as what is loaded by codes would be copied to shared
    memory, one by one."""
    has_1, has_2, has_4 = (code & 1) != 0, (code & 2) != 0, (code & 4) != 0
    a = tl.where(has_1, TABLE[start + 1], TABLE[start])
    b = tl.where(has_1, TABLE[start + 3], TABLE[start + 2])
    c = tl.where(has_1, TABLE[start + 5], TABLE[start + 4])
    d = tl.where(has_1, TABLE[start + 7], TABLE[start + 6])
    return tl.where(has_4, tl.where(has_2, d, c), tl.where(has_2, b, a))


@triton.jit
def group_values(
    ptr,
    k,
    n,
    outputs,
    inputs,
    group_size,
    groups_ptr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
    HAS_INDEX: tl.constexpr,
):
    """Of [num_groups, outputs] at ptr, what `spread` needs for a tile; a number past the last ones.

    PART: as many inputs of the tile are in one group; 0: any.
    """
    here = tl.arange(0, BLOCK_N)
    real = n + here < outputs
    ptr += n
    if PART == BLOCK_K:
        group = tl.minimum(k, inputs - 1) // group_size
        values = tl.load(ptr + group * outputs + here, mask=real, other=0)
        values = values[:, None]  # [N, 1]
    else:
        if PART == 0:
            columns = k + tl.arange(0, BLOCK_K)
            inside = columns < inputs
            if HAS_INDEX:
                group = tl.load(groups_ptr + columns, mask=inside, other=0)
            else:
                group = columns // group_size
        else:
            group = k // group_size + tl.arange(0, BLOCK_K // PART)
            inside = group * group_size < inputs
        at = here[:, None] + (group * outputs)[None, :]
        values = tl.load(ptr + at, mask=real[:, None] & inside[None, :], other=0)
    return values  # [N, BLOCK_K / PART], or [N, K]


@triton.jit
def groups_of(
    scales_ptr,
    zeros_ptr,
    groups_ptr,
    k,
    n,
    outputs,
    inputs,
    group_size,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
):
    """Scales and zero points for a tile; scales for those that there are none of."""
    scales = group_values(
        scales_ptr, k, n, outputs, inputs, group_size, groups_ptr,
        BLOCK_N, BLOCK_K, PART, HAS_INDEX,
    )  # fmt: skip
    zeros = scales
    if HAS_ZEROS:
        zeros = group_values(
            zeros_ptr, k, n, outputs, inputs, group_size, groups_ptr,
            BLOCK_N, BLOCK_K, PART, HAS_INDEX,
        )  # fmt: skip
    return scales, zeros


@triton.jit
def spread(values, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PART: tl.constexpr):
    """What `group_values` gave -> float32 that broadcasts to [BLOCK_N, BLOCK_K]."""
    values = values.to(tl.float32)
    if PART != 0 and PART != BLOCK_K:
        values = tl.broadcast_to(values[:, :, None], [BLOCK_N, BLOCK_K // PART, PART])
        values = tl.reshape(values, [BLOCK_N, BLOCK_K])
    return values


@triton.jit
def weight_tile(
    codes_ptr,
    scales,
    zeros,
    block,
    n,
    outputs,
    row_bytes,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FORM: tl.constexpr,
    PART: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
):
    """[BLOCK_N, BLOCK_K] float32: weights of outputs n, n + 1, … and of the block's inputs; some
    numbers past the last ones. scales, zeros: of `group_values`."""
    here = tl.arange(0, BLOCK_N)
    real = (n + here < outputs)[:, None]
    codes_ptr += n.to(tl.int64) * row_bytes
    if FORM <= UINT8:  # or FLOAT8: a byte each
        at = (block * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
        code = tl.load(codes_ptr + here[:, None] * row_bytes + at, real & (at < row_bytes), 0)
        code = code.to(tl.int32)  # [N, K]
    else:
        HALF: tl.constexpr = BLOCK_K // 2
        at = (block * HALF + tl.arange(0, HALF))[None, :]
        pairs = tl.load(codes_ptr + here[:, None] * row_bytes + at, real & (at < row_bytes), 0)
        pairs = pairs.to(tl.int32)  # [N, K / 2]
        code = tl.reshape(tl.join(pairs & 15, pairs >> 4), [BLOCK_N, BLOCK_K])
    if FORM == FLOAT8:
        # As float16, with more range than it needs, so that what is subnormal is exact, too.
        bits = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
        value = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        value = tl.where((code & 0x7F) == 0x7F, float("nan"), value)
    elif FORM == NF4:
        high = one_of_eight(code, _NF4_TABLE, _EIGHT)
        value = tl.where((code & 8) != 0, high, one_of_eight(code, _NF4_TABLE, _NONE))
    elif FORM == FP4:
        value = one_of_eight(code, _FP4_TABLE, _NONE)
        value = tl.where((code & 8) != 0, -value, value)
    else:
        if HAS_ZEROS:
            zero = spread(zeros, BLOCK_N, BLOCK_K, PART)
        else:
            zero = 8.0 if FORM == UINT4 else 128.0
        value = (code | _BIG_BITS).to(tl.float32, bitcast=True) - (zero + _BIG)
    return value * spread(scales, BLOCK_N, BLOCK_K, PART)


@triton.jit(do_not_specialize=["first", "end"], do_not_specialize_on_alignment=MATRIX_POINTERS)
def dequantize_kernel(
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    groups_ptr,
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
    """grid (blocks of inputs, blocks of rows from first to end). One program: one tile, rounded.

    out: [end - first, inputs]
    """
    block = tl.program_id(0)
    k = block * BLOCK_K
    row = tl.program_id(1) * BLOCK_N
    n = first + row
    scales, zeros = groups_of(
        scales_ptr, zeros_ptr, groups_ptr, k, n, outputs, inputs, group_size,
        BLOCK_N, BLOCK_K, PART, HAS_ZEROS, HAS_INDEX,
    )  # fmt: skip
    value = weight_tile(
        codes_ptr, scales, zeros, block, n, outputs, row_bytes,
        BLOCK_N, BLOCK_K, FORM, PART, HAS_ZEROS,
    )  # fmt: skip
    here, columns = tl.arange(0, BLOCK_N), k + tl.arange(0, BLOCK_K)
    out_ptr += row.to(tl.int64) * inputs
    mask = (n + here < end)[:, None] & (columns < inputs)[None, :]
    at = here[:, None] * inputs + columns[None, :]
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=mask)


def weight_constants(weight: QuantizedMatrix, block_k: int) -> dict[str, Any]:
    """The kernels' constexprs that a matrix says, but for BLOCK_N."""
    size = weight.group_size
    if weight.group_index is not None:
        part = 0
    elif weight.num_groups == 1 or size % block_k == 0:
        part = block_k
    else:
        part = size if block_k % size == 0 else 0
    return {
        "BLOCK_K": block_k,
        "FORM": FORMS[weight.kind],
        "PART": part,
        "HAS_ZEROS": weight.zeros is not None,
        "HAS_INDEX": weight.group_index is not None,
    }


def weight_tensors(weight: QuantizedMatrix) -> tuple[torch.Tensor, ...]:
    """codes, scales, zeros and groups of the kernels; what a matrix has not is not read."""
    codes = weight.codes
    return (
        codes,
        weight.scales,
        codes if weight.zeros is None else weight.zeros,
        codes if weight.group_index is None else weight.group_index,
    )


def weight_sizes(weight: QuantizedMatrix) -> tuple[int, int, int, int]:
    """outputs, inputs, row_bytes and group_size."""
    outputs, inputs = weight.shape
    return outputs, inputs, weight.codes.shape[1], weight.group_size


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
