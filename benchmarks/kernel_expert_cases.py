"""What benchmarks/gpu_kernels.py measures of mixtures of experts, and the fewest bytes and
operations that each must cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.kernel_cases import KernelCase, MixtureShape, Shapes
from kernels.experts.op import mix_experts
from kernels.experts.weights import ExpertWeights


def expert_cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelCase]:
    for name, shape in shapes.mixtures.items():
        for tokens in shapes.mixture_tokens:
            for touched in sorted({min(shape.top_k * tokens, shape.experts), shape.top_k}):

                def make(
                    shape: MixtureShape = shape, tokens: int = tokens, touched: int = touched
                ) -> Callable[[], object]:
                    return _call(shape, tokens, touched, device, dtype)

                yield KernelCase(
                    "mix_experts",
                    f"{name}, {tokens} tokens, {touched} experts",
                    bytes=mixture_bytes(shape, tokens, touched, dtype.itemsize),
                    flops=tokens * mixture_flops(shape),
                    make=make,
                )


def mixture_bytes(shape: MixtureShape, tokens: int, touched: int, itemsize: int) -> int:
    """The router, the experts that tokens go to, and tokens in and out, each once."""
    weights = (shape.experts + touched * 3 * shape.intermediate + shape.shared) * shape.hidden
    return (weights + (2 + shape.shared) * tokens * shape.hidden) * itemsize


def mixture_flops(shape: MixtureShape) -> int:
    """Of a token."""
    features = shape.experts + shape.top_k * 3 * shape.intermediate + shape.shared
    return 2 * shape.hidden * features


def _call(
    shape: MixtureShape, tokens: int, touched: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """Tokens go round the first `touched` experts: rows are one input each, of as many as there are
    experts, and the router asks by these."""
    experts, hidden, inter = shape.experts, shape.hidden, shape.intermediate

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device, dtype=dtype) * size[-1] ** -0.5

    gate_up, down = normal(experts, 2 * inter, hidden), normal(experts, hidden, inter)
    apart = device.type == "cpu"
    x = normal(tokens, hidden)
    router = torch.zeros(experts, hidden, device=device, dtype=dtype)
    width = min(experts, hidden)
    router[:width, :width] = torch.eye(width, device=device, dtype=dtype)
    x[:, :width] = 0.0
    for token in range(tokens):
        for place in range(shape.top_k):
            x[token, (token * shape.top_k + place) % touched % width] = 10.0
    weights = ExpertWeights(
        router,
        list(gate_up) if apart else gate_up,
        list(down) if apart else down,
        normal(1, hidden) if shape.shared else None,
        shape.top_k,
        normalizes=True,
    )
    weights.pack()
    shared = normal(tokens, hidden) if shape.shared else None
    return lambda: mix_experts(x, weights, "silu", shared)
