"""A mixture of experts: checks, then the implementation for the device."""

from __future__ import annotations

from typing import Any

import torch

from kernels.experts import cpu, naive
from kernels.experts.lora import ExpertLora
from kernels.experts.weights import ExpertWeights
from kernels.fused.op import ACTIVATIONS
from kernels.gpu.dispatch import uses_triton
from kernels.lora.checks import check_launch, check_segments, check_tensors
from kernels.lora.metadata import LoraGroup


def mix_experts(
    x: torch.Tensor,
    weights: ExpertWeights,
    activation: str,
    shared: torch.Tensor | None = None,
    delta: torch.Tensor | None = None,
    lora: ExpertLora | None = None,
) -> torch.Tensor:
    """As `kernels.experts.naive.mix_experts`. On CPU a token's result does not depend on the
    others.

    x: [num_tokens, hidden], contiguous. shared: the shared expert's output, of x's shape; where
    weights have a shared_gate, and only there. delta: of x's shape, what `shared` still lacks:
    added on the way; by Triton kernels alone. lora: of x's dtype and device.

    Raises: ValueError for shapes, dtypes or an activation that do not fit.
    """
    if x.dim() != 2 or x.shape[1] != weights.router.shape[1] or x.dtype != weights.router.dtype:
        raise ValueError(f"x {x.dtype} {tuple(x.shape)}, router {tuple(weights.router.shape)}")
    if not x.is_contiguous():
        raise ValueError(f"x of strides {x.stride()} is not contiguous")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: one of {', '.join(ACTIVATIONS)}")
    if (shared is None) != (weights.shared_gate is None):
        raise ValueError("shared: wanted where weights have a shared_gate, and only there")
    for name, each in (("shared", shared), ("delta", delta)):
        if each is not None and (each.shape != x.shape or each.dtype != x.dtype):
            raise ValueError(f"x {x.dtype} {tuple(x.shape)}, {name} {each.dtype} {each.shape}")
    if delta is not None and (shared is None or not uses_triton(x)):
        raise ValueError(f"delta on {x.device}: only with shared, and by Triton kernels")
    if lora is not None:
        _check_lora(x, weights, lora)
    if uses_triton(x):
        return _of(x).mix_experts(x, weights, activation, shared, delta, lora)
    return _of(x).mix_experts(x, weights, activation, shared, lora)


def _check_lora(x: torch.Tensor, weights: ExpertWeights, lora: ExpertLora) -> None:
    check_tensors(x, lora.layer_pages)
    for group, in_features in (
        (lora.router, x.shape[1]),
        (lora.gate_up, x.shape[1]),
        (lora.down, weights.intermediate_size),
    ):
        if isinstance(group, LoraGroup):
            check_launch(x, lora.layer_pages, group.metadata)
        elif group is not None:
            check_segments(group, len(x), in_features)


def _of(x: torch.Tensor) -> Any:
    if uses_triton(x):
        from kernels.experts import triton_experts

        return triton_experts
    return cpu if cpu.supports(x) else naive
