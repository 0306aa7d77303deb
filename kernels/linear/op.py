"""The base GEMM. On CPU, weights are brought once into the layout that is computed in: our own for
bfloat16 where that is faster, else oneDNN's, which would otherwise reorder them in every call, a
good part of the time of a decode step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.linear import cpu

_PACKED_DTYPES = (torch.float32, torch.bfloat16)
_BATCH_HINT = 32  # tokens of a decode step; the layout serves any number


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] weights in the layout that `linear` is fastest with, on the weight's device.

    The result is opaque: only `linear` and `unpack` take it. The same tensor where there is no
    better layout.
    """
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


def unpack(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] as it was before `pack`; but for what a float16 layout lost of an output's weights
    that are below a 4-millionth of its largest."""
    if weight.is_mkldnn:
        return weight.to_dense()
    return cpu.unpack(weight) if weight.dim() == 3 else weight


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Semantics: x @ weight.T + bias

    x: [num_tokens, in], weight: [out, in] plain or packed, bias: [out]; one dtype and device

    Raises: ValueError or RuntimeError for shapes or dtypes that do not fit together.
    """
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if weight.dim() == 3:
        return cpu.linear(x, weight, bias)
    return F.linear(x, weight, bias)
