"""Quantised matrices of random codes, for the tests of kernels/quantized."""

from __future__ import annotations

import torch

from kernels.quantized.matrix import Kind, QuantizedMatrix


def random_matrix(
    kind: Kind,
    outputs: int,
    inputs: int,
    num_groups: int = 1,
    *,
    dtype: torch.dtype = torch.bfloat16,
    scales: torch.dtype = torch.float32,
    has_zeros: bool = False,
    is_ordered: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> QuantizedMatrix:
    """Weights of about 1. Not is_ordered: each input is in a random group."""
    generator = torch.Generator(device).manual_seed(seed)

    def integers(high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator, dtype=dtype, device=device)

    is_wide = kind in ("uint8", "float8_e4m3")
    codes = integers(256, outputs, inputs if is_wide else inputs // 2)
    if kind == "float8_e4m3":
        codes = codes & 0xBF  # up to 1.875: without the largest, and without those that are NaN
    largest = {"uint4": 8.0, "uint8": 128.0}.get(kind, 1.0)
    spread = 0.25 + torch.rand(num_groups, outputs, generator=generator, device=device)
    zeros = None
    if has_zeros:
        zeros = integers(256 if kind == "uint8" else 16, num_groups, outputs)
    group_index = None if is_ordered else integers(num_groups, inputs, dtype=torch.int32)
    return QuantizedMatrix(
        codes,
        (spread / largest).to(scales),
        zeros,
        group_index,
        kind,
        dtype,
    )
