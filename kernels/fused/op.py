"""Norms and activations: checks, then the implementation for the device."""

from __future__ import annotations

from typing import Any

import torch

from kernels.fused import cpu, naive
from kernels.gpu.dispatch import uses_triton

ACTIVATIONS = ("silu", "gelu_tanh")
PLAIN_ACTIVATIONS = ("gelu_tanh", "relu2")


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `kernels.fused.naive.rms_norm`. Raises: ValueError for shapes that do not fit."""
    _check_norm(x, weight, 1)
    return _of(x).rms_norm(x, weight, eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `kernels.fused.naive.layer_norm`. Raises: ValueError for shapes that do not fit."""
    _check_norm(x, weight, 2)
    return _of(x).layer_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `kernels.fused.naive.add_rms_norm`: `residual` changes in place.

    x, residual: [num_tokens, features], one dtype, contiguous, not aliased
    delta: of x's shape and dtype, what x still lacks: added on the way; by Triton kernels alone

    Raises: ValueError for shapes or dtypes that do not fit together.
    """
    _check_norm(x, weight, 1)
    _check_residual(x, residual)
    if delta is None:
        return _of(x).add_rms_norm(x, residual, weight, eps)
    check_delta(x, delta)
    return _of(x).add_rms_norm(x, residual, weight, eps, delta)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `kernels.fused.naive.add_layer_norm`. Arguments and Raises: as `add_rms_norm`."""
    _check_norm(x, weight, 2)
    _check_residual(x, residual)
    if delta is None:
        return _of(x).add_layer_norm(x, residual, weight, eps)
    check_delta(x, delta)
    return _of(x).add_layer_norm(x, residual, weight, eps, delta)


def gated_activation(
    gate_up: torch.Tensor, activation: str, delta: torch.Tensor | None = None
) -> torch.Tensor:
    """As `kernels.fused.naive.gated_activation`.

    gate_up: [num_tokens, 2 * features]; returns [num_tokens, features]
    delta: as in `add_rms_norm`, of gate_up

    Raises: ValueError for an odd number of columns or an activation not in ACTIVATIONS.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up {tuple(gate_up.shape)} is not [num_tokens, 2 * features]")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: one of {', '.join(ACTIVATIONS)}")
    if delta is None:
        return _of(gate_up).gated_activation(gate_up, activation)
    check_delta(gate_up, delta)
    return _of(gate_up).gated_activation(gate_up, activation, delta)


def plain_activation(x: torch.Tensor, kind: str, delta: torch.Tensor | None = None) -> torch.Tensor:
    """As `kernels.fused.naive.plain_activation`.

    x: [num_tokens, features]; returns as much
    delta: as in `add_rms_norm`

    Raises: ValueError for other dimensions or a kind not in PLAIN_ACTIVATIONS.
    """
    if x.dim() != 2:
        raise ValueError(f"x {tuple(x.shape)} is not [num_tokens, features]")
    if kind not in PLAIN_ACTIVATIONS:
        raise ValueError(f"activation {kind!r}: one of {', '.join(PLAIN_ACTIVATIONS)}")
    if delta is None:
        return _of(x).plain_activation(x, kind)
    check_delta(x, delta)
    return _of(x).plain_activation(x, kind, delta)


def check_delta(x: torch.Tensor, delta: torch.Tensor) -> None:
    """Raises: ValueError unless `delta` can be added to `x` on the way."""
    if not uses_triton(x):
        raise ValueError(f"delta on {x.device}: add it before, only Triton kernels take it")
    if x.shape != delta.shape or x.dtype != delta.dtype:
        raise ValueError(f"x {x.dtype} {tuple(x.shape)}, delta {delta.dtype} {tuple(delta.shape)}")


def _of(x: torch.Tensor) -> Any:
    if uses_triton(x):
        from kernels.fused import triton_fused

        return triton_fused
    return cpu if cpu.supports(x) else naive


def _check_norm(x: torch.Tensor, weight: torch.Tensor, num_vectors: int) -> None:
    shape = x.shape[-1:] if num_vectors == 1 else (num_vectors, x.shape[-1])
    if weight.shape != shape or not weight.is_contiguous():
        raise ValueError(f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, {weight.stride()}")


def _check_residual(x: torch.Tensor, residual: torch.Tensor) -> None:
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(
            f"x {x.dtype} {tuple(x.shape)}, residual {residual.dtype} {tuple(residual.shape)}"
        )
    if not residual.is_contiguous():
        raise ValueError(f"residual of strides {residual.stride()} is not contiguous")
