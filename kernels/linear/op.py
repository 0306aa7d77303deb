"""The base GEMM. On CPU, weights are brought once into the layout that is computed in: our own for
bfloat16 where that is faster, else oneDNN's, which would otherwise reorder them in every call, a
good part of the time of a decode step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.linear import cpu
from kernels.quantized import op as quantized
from kernels.quantized.matrix import QuantizedMatrix

Weight = torch.Tensor | QuantizedMatrix

_PACKED_DTYPES = (torch.float32, torch.bfloat16)
_BATCH_HINT = 32  # tokens of a decode step; the layout serves any number


def pack(weight: Weight) -> Weight:
    """[out, in] weights in the layout that `linear` is fastest with, on the weight's device.

    The result is opaque: only `linear` and `unpack` take it, and a quantised matrix has a `shape`.
    The same where there is no better layout. On CPU a quantised matrix is dequantised, and takes
    the memory of one that never was; on a GPU it stays as it is.
    """
    if isinstance(weight, QuantizedMatrix):
        return pack(weight.dequantize()) if weight.device.type == "cpu" else weight
    layout = cpu.layout_for(weight)
    if layout is not None:
        return layout.pack(weight)
    if weight.device.type != "cpu" or weight.dtype not in _PACKED_DTYPES:
        return weight
    if not torch.backends.mkldnn.is_available():
        return weight
    if weight.dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_HINT)


def unpack(weight: Weight) -> torch.Tensor:
    """[out, in] as it was before `pack`, dequantised; but for what a float16 layout lost of an
    output's weights that are below a 4-millionth of its largest."""
    if isinstance(weight, QuantizedMatrix):
        return weight.dequantize()
    if weight.is_mkldnn:
        return weight.to_dense()
    return cpu.unpack(weight) if weight.dim() == 3 else weight


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Semantics: x @ weight.T + bias

    x: [num_tokens, in], weight: [out, in] plain, packed or quantised, bias: [out]; one dtype and
    device

    Raises: ValueError or RuntimeError for shapes or dtypes that do not fit together.
    """
    if isinstance(weight, QuantizedMatrix):
        return quantized.linear(x, weight, bias)
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if weight.dim() == 3:
        return cpu.linear(x, weight, bias)
    return F.linear(x, weight, bias)
