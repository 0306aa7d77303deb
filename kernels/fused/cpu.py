"""Norms and gated activations on CPU: one pass over memory, where torch makes several calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kernels.cpu.compile import compiled
from kernels.cpu.exponential import exp, tanh
from kernels.cpu.floats import SUPPORTED_DTYPES, bits_of, load, store

MAX_TOKENS = 1024
"""A kernel runs on one thread: with many more tokens, torch's many are faster."""


def supports(x: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in SUPPORTED_DTYPES
        and x.dim() == 2
        and x.shape[0] <= MAX_TOKENS
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `kernels.fused.naive.rms_norm`."""
    out = torch.empty_like(x)
    _norm(bits_of(x), bits_of(weight), np.float32(eps), bits_of(out))
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """As `kernels.fused.naive.add_rms_norm`."""
    out = torch.empty_like(x)
    _add_norm(bits_of(x), bits_of(residual), bits_of(weight), np.float32(eps), bits_of(out))
    return out


def gated_activation(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """As `kernels.fused.naive.gated_activation`."""
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    kernel = _silu_mul if activation == "silu" else _gelu_mul
    kernel(bits_of(gate_up), bits_of(out))
    return out


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    x = torch.zeros(1, 2, dtype=dtype)
    for weight in {dtype, torch.float32}:
        rms_norm(x, torch.ones(2, dtype=weight), 1.0)
        add_rms_norm(x, x.clone(), torch.ones(2, dtype=weight), 1.0)
    gated_activation(x, "silu")
    gated_activation(x, "gelu_tanh")


@compiled
def _scaled(row: Any, weight: Any, eps: Any, out: Any) -> None:  # pragma: no cover - compiled
    total = np.float32(0.0)
    for k in range(row.size):
        value = load(row[k])
        total += value * value
    factor = np.float32(1.0) / np.sqrt(total / np.float32(row.size) + eps)
    for k in range(row.size):
        store(out, k, load(row[k]) * factor * load(weight[k]))


@compiled
def _norm(x: Any, weight: Any, eps: Any, out: Any) -> None:  # pragma: no cover - compiled
    for t in range(x.shape[0]):
        _scaled(x[t], weight, eps, out[t])


@compiled
def _add_norm(
    x: Any, residual: Any, weight: Any, eps: Any, out: Any
) -> None:  # pragma: no cover - compiled
    for t in range(x.shape[0]):
        row, addend = residual[t], x[t]
        for k in range(row.size):
            store(row, k, load(row[k]) + load(addend[k]))
        _scaled(row, weight, eps, out[t])


@compiled
def _silu_mul(gate_up: Any, out: Any) -> None:  # pragma: no cover - compiled
    one = np.float32(1.0)
    features = out.shape[1]
    for t in range(out.shape[0]):
        gates, ups, row = gate_up[t, :features], gate_up[t, features:], out[t]
        for k in range(features):
            gate = load(gates[k])
            store(row, k, gate / (one + exp(-gate)) * load(ups[k]))


@compiled
def _gelu_mul(gate_up: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Hendrycks and Gimpel 2016: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    one, half = np.float32(1.0), np.float32(0.5)
    root, cubic = np.float32(0.7978845608028654), np.float32(0.044715)
    features = out.shape[1]
    for t in range(out.shape[0]):
        gates, ups, row = gate_up[t, :features], gate_up[t, features:], out[t]
        for k in range(features):
            gate = load(gates[k])
            inner = root * (gate + cubic * gate * gate * gate)
            store(row, k, half * gate * (one + tanh(inner)) * load(ups[k]))
