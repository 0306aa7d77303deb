"""Norms and activations on CPU: one pass over memory, where torch makes several calls."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.compile import compiled, compiled_in_order
from kernels.cpu.exponential import exp, tanh
from kernels.cpu.floats import BITS, FLOATS, SUPPORTED_DTYPES, load, store


def supports(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in SUPPORTED_DTYPES and x.dim() == 2


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `kernels.fused.naive.rms_norm`."""
    return _norm(x, None, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """As `kernels.fused.naive.add_rms_norm`."""
    return _norm(residual, x, weight, eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As `kernels.fused.naive.layer_norm`."""
    return _norm(x, None, weight, eps)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """As `kernels.fused.naive.add_layer_norm`."""
    return _norm(residual, x, weight, eps)


def plain_activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    """As `kernels.fused.naive.plain_activation`."""
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    arguments = activation_arguments(x.shape[0], x.shape[1], x.data_ptr(), out.data_ptr())
    threads.run(activation_worker(x.dtype, kind, is_gated=False), np.array(arguments))
    return out


def gated_activation(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """As `kernels.fused.naive.gated_activation`."""
    gate_up = gate_up.contiguous()
    num_tokens, features = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_tokens, features)
    arguments = activation_arguments(num_tokens, features, gate_up.data_ptr(), out.data_ptr())
    threads.run(activation_worker(gate_up.dtype, activation), np.array(arguments))
    return out


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    x = torch.zeros(1, 2, dtype=dtype)
    for weight in {dtype, torch.float32}:
        rms_norm(x, torch.ones(2, dtype=weight), 1.0)
    gated_activation(x, "silu")
    gated_activation(x, "gelu_tanh")
    plain_activation(x, "gelu_tanh")
    plain_activation(x, "relu2")


def _norm(
    x: torch.Tensor, addend: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    x = x.contiguous() if addend is None else x  # what is added to changes in place
    assert x.is_contiguous()
    addend = None if addend is None else addend.contiguous()
    out, epsilon = torch.empty_like(x), np.array([eps], dtype=np.float32)
    arguments = norm_arguments(
        x.shape[0],
        x.shape[1],
        x.data_ptr(),
        0 if addend is None else addend.data_ptr(),
        weight.data_ptr(),
        epsilon.ctypes.data,
        out.data_ptr(),
        shift_address(weight),
    )
    threads.run(norm_worker(x.dtype, weight.dtype), np.array(arguments))
    return out


(
    _NEXT,
    _,
    _NUM_ROWS,
    _FEATURES,
    ROWS,
    X,
    ADDEND,
    WEIGHT,
    _EPS,
    OUT,
    SHIFT,
    _NUM_ARGUMENTS,
) = range(12)


def norm_arguments(
    num_rows: int, features: int, x: int, addend: int, weight: int, eps: int, out: int, shift: int
) -> tuple[int, ...]:
    """What a norm worker is told: addresses; addend: 0, or of what is added to x first, in place;
    weight: 0 for none, `out` is the sum then; eps: of one float32; shift: a LayerNorm's, 0 for an
    RMSNorm. ROWS, if it is set: of the rows of x and addend (int64, each once) that are normed, in
    the order of `out`; else they are the first."""
    return (0, 0, num_rows, features, 0, x, addend, weight, eps, out, shift)


def shift_address(weight: torch.Tensor | None) -> int:
    """Of a norm's weight, as `norm_arguments` wants it."""
    return 0 if weight is None or weight.dim() == 1 else weight[1].data_ptr()


_A_NEXT, _, _A_NUM_ROWS, _A_FEATURES, _A_GATE_UP, _A_OUT, _A_NUM_ARGUMENTS = range(7)


def activation_arguments(num_rows: int, features: int, gate_up: int, out: int) -> tuple[int, ...]:
    """What an activation worker is told: sizes and addresses, gate_up: [num_rows, 2 * features], or
    without a gate [num_rows, features]."""
    return (0, 0, num_rows, features, gate_up, out)


@compiled
def _scaled(row: Any, weight: Any, eps: Any, out: Any) -> None:  # pragma: no cover - compiled
    total = np.float32(0.0)
    for k in range(row.size):
        value = load(row[k])
        total += value * value
    _multiply(row, np.float32(1.0) / np.sqrt(total / np.float32(row.size) + eps), weight, out)


@compiled_in_order
def _multiply(row: Any, factor: Any, weight: Any, out: Any) -> None:  # pragma: no cover - compiled
    """`out` may be `row`, which is another loop of the same function: in order, so that it rounds
    as the other one."""
    for k in range(row.size):
        store(out, k, load(row[k]) * factor * load(weight[k]))


@compiled
def _centred(row: Any, weight: Any, shift: Any, eps: Any, out: Any) -> None:  # pragma: no cover
    total = np.float32(0.0)
    for k in range(row.size):
        total += load(row[k])
    mean = total / np.float32(row.size)
    total = np.float32(0.0)
    for k in range(row.size):
        value = load(row[k]) - mean
        total += value * value
    _shift(
        row, mean, np.float32(1.0) / np.sqrt(total / np.float32(row.size) + eps), weight, shift, out
    )


@compiled_in_order
def _shift(
    row: Any, mean: Any, factor: Any, weight: Any, shift: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """`out` may be `row`, as in `_multiply`."""
    for k in range(row.size):
        store(out, k, (load(row[k]) - mean) * factor * load(weight[k]) + load(shift[k]))


@cache
def norm_worker(dtype: torch.dtype, weight_dtype: torch.dtype) -> Any:
    like = BITS if dtype is torch.bfloat16 else FLOATS
    weight_like = BITS if weight_dtype is torch.bfloat16 else FLOATS
    item_bytes = dtype.itemsize

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, _NUM_ARGUMENTS)
        num_rows, features = a[_NUM_ROWS], a[_FEATURES]
        has_addend = a[ADDEND] != 0
        has_rows, has_weight, has_shift = a[ROWS] != 0, a[WEIGHT] != 0, a[SHIFT] != 0
        rows = threads.array(a[ROWS] if has_rows else a[X], a, (num_rows,))
        weight = threads.array(a[WEIGHT] if has_weight else a[X], weight_like, (features,))
        shift = threads.array(a[SHIFT] if has_shift else a[X], weight_like, (features,))
        eps = threads.array(a[_EPS], FLOATS, (1,))
        out = threads.array(a[OUT], like, (num_rows, features))
        while True:
            t = threads.take(a, _NEXT)
            if t >= num_rows:
                return
            at = (rows[t] if has_rows else t) * features * item_bytes
            row = threads.array(a[X] + at, like, (features,))
            if has_addend:
                other = threads.array(a[ADDEND] + at, like, (features,))
                for k in range(features):
                    store(row, k, load(row[k]) + load(other[k]))
            if has_shift:
                _centred(row, weight, shift, eps[0], out[t])
            elif has_weight:
                _scaled(row, weight, eps[0], out[t])
            else:
                for k in range(features):
                    out[t, k] = row[k]

    return work


@compiled
def _silu_mul(gates: Any, ups: Any, out: Any) -> None:  # pragma: no cover - compiled
    one = np.float32(1.0)
    for k in range(out.size):
        gate = load(gates[k])
        store(out, k, gate / (one + exp(-gate)) * load(ups[k]))


@compiled
def _gelu_mul(gates: Any, ups: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Hendrycks and Gimpel 2016: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    one, half = np.float32(1.0), np.float32(0.5)
    root, cubic = np.float32(0.7978845608028654), np.float32(0.044715)
    for k in range(out.size):
        gate = load(gates[k])
        inner = root * (gate + cubic * gate * gate * gate)
        store(out, k, half * gate * (one + tanh(inner)) * load(ups[k]))


@compiled
def _gelu(row: Any, out: Any) -> None:  # pragma: no cover - compiled
    one, half = np.float32(1.0), np.float32(0.5)
    root, cubic = np.float32(0.7978845608028654), np.float32(0.044715)
    for k in range(out.size):
        value = load(row[k])
        inner = root * (value + cubic * value * value * value)
        store(out, k, half * value * (one + tanh(inner)))


@compiled
def _relu2(row: Any, out: Any) -> None:  # pragma: no cover - compiled
    zero = np.float32(0.0)
    for k in range(out.size):
        value = load(row[k])
        value = zero if value < zero else value  # NaN stays
        store(out, k, value * value)


def activation_worker(dtype: torch.dtype, activation: str, *, is_gated: bool = True) -> Any:
    return (_gated_worker if is_gated else _plain_worker)(dtype, activation)


@cache
def _plain_worker(dtype: torch.dtype, activation: str) -> Any:
    like = BITS if dtype is torch.bfloat16 else FLOATS
    is_gelu = activation == "gelu_tanh"

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, _A_NUM_ARGUMENTS)
        num_rows, features = a[_A_NUM_ROWS], a[_A_FEATURES]
        x = threads.array(a[_A_GATE_UP], like, (num_rows, features))
        out = threads.array(a[_A_OUT], like, (num_rows, features))
        while True:
            t = threads.take(a, _A_NEXT)
            if t >= num_rows:
                return
            if is_gelu:
                _gelu(x[t], out[t])
            else:
                _relu2(x[t], out[t])

    return work


@cache
def _gated_worker(dtype: torch.dtype, activation: str) -> Any:
    like = BITS if dtype is torch.bfloat16 else FLOATS
    is_silu = activation == "silu"

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, _A_NUM_ARGUMENTS)
        num_rows, features = a[_A_NUM_ROWS], a[_A_FEATURES]
        gate_up = threads.array(a[_A_GATE_UP], like, (num_rows, 2, features))
        out = threads.array(a[_A_OUT], like, (num_rows, features))
        while True:
            t = threads.take(a, _A_NEXT)
            if t >= num_rows:
                return
            if is_silu:
                _silu_mul(gate_up[t, 0], gate_up[t, 1], out[t])
            else:
                _gelu_mul(gate_up[t, 0], gate_up[t, 1], out[t])

    return work
