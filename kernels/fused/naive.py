"""Norms and activations: plain torch. What runs where nothing is faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Zhang and Sennrich 2019. A float32 weight on a narrower x: all in float32, rounded once.

    x: [..., features], weight: [features]; returns x's shape and dtype
    """
    wide = x if weight.dtype == x.dtype else x.float()
    return F.rms_norm(wide, weight.shape, weight, eps).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Semantics: residual += x, in place; then rms_norm(residual)."""
    residual += x
    return rms_norm(residual, weight, eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Ba et al. 2016. A float32 weight on a narrower x: all in float32, rounded once.

    x: [..., features], weight: [2, features], scale and shift; returns x's shape and dtype
    """
    wide = x if weight.dtype == x.dtype else x.float()
    return F.layer_norm(wide, weight.shape[1:], weight[0], weight[1], eps).to(x.dtype)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Semantics: residual += x, in place; then layer_norm(residual)."""
    residual += x
    return layer_norm(residual, weight, eps)


def plain_activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Semantics: act(x), of an MLP without a gate.

    kind: gelu_tanh for the tanh approximation of GELU, or relu2 for max(x, 0)^2
    """
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return F.relu(x).square()


def gated_activation(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """Semantics: act(gate_up[:, :n]) * gate_up[:, n:], n = half of the columns.

    activation: silu, or gelu_tanh for the tanh approximation of GELU
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh") * up
