"""act(gate) * up, or act(x), in one Triton kernel each: CUDA and ROCm."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import launch_options, tuned

_TWO_SQRT_2_OVER_PI = 1.5957691216057308
_CUBIC = 0.044715


@triton.jit
def gated_activation_kernel(
    gate_up_ptr,
    delta_ptr,
    out_ptr,
    gate_up_stride,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
    SILU: tl.constexpr,
    GELU_SCALE: tl.constexpr,
    GELU_CUBIC: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    """grid (rows, blocks of columns). One program: BLOCK columns of one row, in f32."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < FEATURES
    gate_ptr = gate_up_ptr + row * gate_up_stride
    gate = tl.load(gate_ptr + at, mask=real, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + FEATURES + at, mask=real, other=0.0).to(tl.float32)
    if HAS_DELTA:
        delta_ptr += row * 2 * FEATURES
        gate += tl.load(delta_ptr + at, mask=real, other=0.0).to(tl.float32)
        up += tl.load(delta_ptr + FEATURES + at, mask=real, other=0.0).to(tl.float32)
    # GELU's tanh form is a sigmoid of this: 0.5 * (1 + tanh(u)) = sigmoid(2 * u).
    slope = gate if SILU else GELU_SCALE * (gate + GELU_CUBIC * gate * gate * gate)
    value = gate / (1.0 + tl.exp(-slope)) * up
    tl.store(out_ptr + row * FEATURES + at, value.to(out_ptr.dtype.element_ty), mask=real)


def activation_constants(
    features: int, activation: str, block: int, has_delta: bool = False
) -> dict[str, Any]:
    """gated_activation_kernel's constexprs."""
    return {
        "FEATURES": features,
        "BLOCK": block,
        "SILU": activation == "silu",
        "GELU_SCALE": _TWO_SQRT_2_OVER_PI,
        "GELU_CUBIC": _CUBIC,
        "HAS_DELTA": has_delta,
    }


def gated_activation(
    gate_up: torch.Tensor, activation: str, delta: torch.Tensor | None = None
) -> torch.Tensor:
    """As `kernels.fused.op.gated_activation`, rounded once."""
    if gate_up.stride(1) != 1:
        gate_up = gate_up.contiguous()
    rows, features = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, features)
    if rows and features:
        settings = tuned("fused", device_name(gate_up.device), "gated_activation", "any")
        block = settings["block"]
        gated_activation_kernel[(rows, triton.cdiv(features, block))](
            gate_up,
            gate_up if delta is None else delta.contiguous(),
            out,
            gate_up.stride(0),
            **activation_constants(features, activation, block, delta is not None),
            **launch_options(settings),
        )
    return out


@triton.jit
def plain_activation_kernel(
    x_ptr,
    delta_ptr,
    out_ptr,
    x_stride,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
    RELU2: tl.constexpr,
    GELU_SCALE: tl.constexpr,
    GELU_CUBIC: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    """grid (rows, blocks of columns). One program: BLOCK columns of one row, in f32."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < FEATURES
    x = tl.load(x_ptr + row * x_stride + at, mask=real, other=0.0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(delta_ptr + row * FEATURES + at, mask=real, other=0.0).to(tl.float32)
    if RELU2:
        positive = tl.where(x < 0.0, 0.0, x)  # NaN stays
        value = positive * positive
    else:
        value = x / (1.0 + tl.exp(-GELU_SCALE * (x + GELU_CUBIC * x * x * x)))
    tl.store(out_ptr + row * FEATURES + at, value.to(out_ptr.dtype.element_ty), mask=real)


def plain_constants(
    features: int, kind: str, block: int, has_delta: bool = False
) -> dict[str, Any]:
    """plain_activation_kernel's constexprs."""
    return {
        "FEATURES": features,
        "BLOCK": block,
        "RELU2": kind == "relu2",
        "GELU_SCALE": _TWO_SQRT_2_OVER_PI,
        "GELU_CUBIC": _CUBIC,
        "HAS_DELTA": has_delta,
    }


def plain_activation(x: torch.Tensor, kind: str, delta: torch.Tensor | None = None) -> torch.Tensor:
    """As `kernels.fused.op.plain_activation`, rounded once."""
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, features = x.shape
    out = x.new_empty(rows, features)
    if rows and features:
        settings = tuned("fused", device_name(x.device), "gated_activation", "any")
        block = settings["block"]
        plain_activation_kernel[(rows, triton.cdiv(features, block))](
            x,
            x if delta is None else delta.contiguous(),
            out,
            x.stride(0),
            **plain_constants(features, kind, block, delta is not None),
            **launch_options(settings),
        )
    return out
