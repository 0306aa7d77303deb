"""RMSNorm and LayerNorm, with the residual's sum when there is one, in one Triton kernel."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import launch_options, tuned

_CASES = (1024, 2048, 4096, 8192, 16384, 32768)


@triton.jit
def norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    delta_ptr,
    out_ptr,
    x_stride,
    eps,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """grid (rows,). One program: one row, held whole; sums in f32, rounded once. CENTRED: of a
    LayerNorm, whose weight has the shift behind the scale."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    real = at < FEATURES
    x = tl.load(x_ptr + row * x_stride + at, mask=real, other=0.0)
    if HAS_RESIDUAL:
        residual_ptr += row * FEATURES
        total = tl.load(residual_ptr + at, mask=real, other=0.0).to(tl.float32)
        if HAS_DELTA:
            total += tl.load(delta_ptr + row * FEATURES + at, mask=real, other=0.0).to(tl.float32)
        # What is normed is what is kept, rounded.
        x = (total + x.to(tl.float32)).to(x.dtype)
        tl.store(residual_ptr + at, x, mask=real)
    wide = x.to(tl.float32)
    if CENTRED:
        wide = tl.where(real, wide - tl.sum(wide, 0) / FEATURES, 0.0)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / FEATURES + eps)
    weight = tl.load(weight_ptr + at, mask=real, other=0.0).to(tl.float32)
    normed = wide * inverse * weight
    if CENTRED:
        normed += tl.load(weight_ptr + FEATURES + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * FEATURES + at, normed.to(x.dtype), mask=real)


def norm_case(features: int) -> str:
    """The tuning table's name for rows of this width; wider ones share the last."""
    return str(next((case for case in _CASES if features <= case), _CASES[-1]))


def norm_constants(
    features: int, has_residual: bool, has_delta: bool = False, is_centred: bool = False
) -> dict[str, Any]:
    """norm_kernel's constexprs."""
    return {
        "FEATURES": features,
        "BLOCK": triton.next_power_of_2(features),
        "HAS_RESIDUAL": has_residual,
        "HAS_DELTA": has_delta,
        "CENTRED": is_centred,
    }


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `kernels.fused.naive.rms_norm`."""
    return _norm(x, weight, eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `kernels.fused.naive.layer_norm`."""
    return _norm(x, weight, eps)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    return _launch(rows, None, weight, eps, None).view(x.shape)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `kernels.fused.op.add_rms_norm`.

    Raises: ValueError for a residual that is not contiguous: it could not change in place.
    """
    return _add_norm(x, residual, weight, eps, delta)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `kernels.fused.op.add_layer_norm`. Raises: as `add_rms_norm`."""
    return _add_norm(x, residual, weight, eps, delta)


def _add_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    delta: torch.Tensor | None,
) -> torch.Tensor:
    if not residual.is_contiguous():
        raise ValueError(f"residual of strides {residual.stride()} is not contiguous")
    return _launch(x.contiguous(), residual, weight, eps, delta)


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    delta: torch.Tensor | None,
) -> torch.Tensor:
    rows, features = x.shape
    out = x.new_empty(rows, features)
    if rows:
        settings = tuned("fused", device_name(x.device), "rms_norm", norm_case(features))
        norm_kernel[(rows,)](
            x,
            x if residual is None else residual,
            weight.contiguous(),
            x if delta is None else delta.contiguous(),
            out,
            x.stride(0),
            eps,
            **norm_constants(features, residual is not None, delta is not None, weight.dim() == 2),
            **launch_options(settings),
        )
    return out
