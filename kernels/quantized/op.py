"""The product with a quantised matrix: checks, then the implementation for the device."""

from __future__ import annotations

import torch

from kernels.gpu.dispatch import uses_triton
from kernels.quantized import naive
from kernels.quantized.matrix import QuantizedMatrix


def linear(
    x: torch.Tensor, weight: QuantizedMatrix, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Semantics: x @ weight.dequantize().T + bias; weights alone are quantised, x never is.

    x: [num_tokens, in] of the matrix's dtype; bias: [out] of that dtype; one device
    Returns [num_tokens, out] of that dtype, sums in float32.

    On a GPU codes are read as they are for up to some hundreds of tokens, else dequantised by
    parts, as they are for float32: which, and how many at once, kernels/tuning/quantized.json says.

    Raises: ValueError for shapes, dtypes or devices that do not fit together.
    """
    outputs, inputs = weight.shape
    if x.dim() != 2 or x.shape[1] != inputs or x.dtype is not weight.dtype:
        raise ValueError(
            f"x {x.dtype} {tuple(x.shape)}, a matrix of {inputs} {weight.dtype} inputs"
        )
    if bias is not None and (bias.shape != (outputs,) or bias.dtype is not weight.dtype):
        raise ValueError(
            f"bias {bias.dtype} {tuple(bias.shape)}, a matrix of {outputs} {weight.dtype} outputs"
        )
    if any(each.device != weight.device for each in (x, bias) if each is not None):
        raise ValueError(f"x is on {x.device}, the matrix on {weight.device}")
    if not uses_triton(x):
        return naive.linear(x, weight, bias)
    from kernels.quantized import triton_linear

    return triton_linear.linear(x, weight, None if bias is None else bias.contiguous())
