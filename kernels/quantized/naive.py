"""The product with a quantised matrix: plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.quantized.matrix import QuantizedMatrix


def linear(x: torch.Tensor, weight: QuantizedMatrix, bias: torch.Tensor | None) -> torch.Tensor:
    """Semantics: x @ weight.dequantize().T + bias"""
    return F.linear(x, weight.dequantize(), bias)
