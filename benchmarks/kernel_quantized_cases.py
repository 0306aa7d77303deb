"""What benchmarks/gpu_kernels.py measures of products with quantised matrices, and the fewest bytes
and operations that each must cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd

import torch

from benchmarks.kernel_cases import KernelCase, ModelShape, Shapes
from kernels.linear.op import linear
from kernels.quantized.matrix import Kind, QuantizedMatrix

KINDS: dict[str, tuple[Kind, int | None]] = {  # and the inputs of a group; None: all of them
    "uint4 of 128": ("uint4", 128),
    "nf4 of 64": ("nf4", 64),
    "float8 of a row": ("float8_e4m3", None),
}


def quantized_cases(
    shapes: Shapes, device: torch.device, dtype: torch.dtype
) -> Iterator[KernelCase]:
    model = shapes.models[shapes.quantized_model]
    for projection, (outputs, inputs) in matrices_of(model).items():
        for label, (kind, size) in KINDS.items():
            num_groups = 1 if size is None else inputs // gcd(size, inputs)
            row_bytes = inputs if kind == "float8_e4m3" else inputs // 2
            for tokens in shapes.quantized_tokens:

                def make(
                    kind: Kind = kind,
                    outputs: int = outputs,
                    inputs: int = inputs,
                    row_bytes: int = row_bytes,
                    num_groups: int = num_groups,
                    tokens: int = tokens,
                ) -> Callable[[], object]:
                    # float8's codes below those that are NaN.
                    shape = (outputs, row_bytes)
                    codes = torch.randint(120, shape, dtype=torch.uint8, device=device)
                    scales = torch.rand(num_groups, outputs, device=device).to(dtype)
                    matrix = QuantizedMatrix(codes, scales, None, None, kind, dtype)
                    x = torch.randn(tokens, inputs, device=device).to(dtype)
                    return lambda: linear(x, matrix)

                weights = outputs * row_bytes + num_groups * outputs * dtype.itemsize
                yield KernelCase(
                    "linear_quantized",
                    f"{shapes.quantized_model} {projection}, {label}, {tokens} tokens",
                    bytes=weights + tokens * (inputs + outputs) * dtype.itemsize,
                    flops=2 * tokens * inputs * outputs,
                    make=make,
                )


def matrices_of(model: ModelShape) -> dict[str, tuple[int, int]]:
    """(outputs, inputs)"""
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    return {
        "qkv": (q + 2 * kv, model.hidden),
        "o": (model.hidden, q),
        "gate_up": (2 * model.intermediate, model.hidden),
        "down": (model.hidden, model.intermediate),
    }
