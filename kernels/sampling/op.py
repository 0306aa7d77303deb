"""Choosing tokens: checks, then the implementation for the device."""

from __future__ import annotations

import torch

from kernels.gpu.dispatch import uses_triton
from kernels.sampling import cpu, cpu_logprobs, cpu_mask, cpu_penalties, cpu_sample, naive
from kernels.sampling.arguments import Filters, Histories


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `kernels.sampling.naive.likeliest`.

    Raises: ValueError when logits are not [n, vocab] of some vocabulary.
    """
    _check_logits(logits)
    return (cpu if cpu.supports(logits) else naive).likeliest(logits)


def penalize(
    logits: torch.Tensor, histories: Histories, previous_ids: torch.Tensor | None = None
) -> None:
    """As `kernels.sampling.naive.penalize`. What tokens there are is not checked.

    Raises: ValueError for shapes or dtypes that do not fit together.
    """
    _check_logits(logits)
    if logits.dtype != torch.float32:
        raise ValueError(f"logits {logits.dtype}, not float32")
    count = len(histories.rows)
    if len(histories.indptr) != count + 1:
        raise ValueError(f"indptr [{len(histories.indptr)}] of {count} rows")
    for name in ("rows", "tokens", "indptr", "num_prompt", "unread"):
        _check_each(name, getattr(histories, name), torch.int64)
    for name in ("num_prompt", "unread"):
        _check_each(name, getattr(histories, name), torch.int64, count)
    for name in ("repetition", "presence", "frequency"):
        _check_each(name, getattr(histories, name), torch.float32, count)
    if previous_ids is not None:
        _check_each("previous_ids", previous_ids, torch.int64)
    (cpu_penalties if cpu_penalties.supports(logits) else naive).penalize(
        logits, histories, previous_ids
    )


def logprobs(
    logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `kernels.sampling.naive.logprobs`. Which rows and ids there are is not checked.

    Raises: ValueError for shapes or dtypes that do not fit together.
    """
    _check_logits(logits)
    _check_each("rows", rows, torch.int64)
    _check_each("ids", ids, torch.int64, len(rows))
    if not 0 <= num_top <= logits.shape[1]:
        raise ValueError(f"num_top {num_top} of {logits.shape[1]} tokens")
    return (cpu_logprobs if cpu.supports(logits) else naive).logprobs(logits, rows, ids, num_top)


def mask(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """As `kernels.sampling.naive.mask`. Which rows there are is not checked.

    Raises: ValueError for shapes or dtypes that do not fit together.
    """
    _check_logits(logits)
    if logits.dtype != torch.float32:
        raise ValueError(f"logits {logits.dtype}, not float32")
    _check_each("rows", rows, torch.int64)
    shape = (len(rows), -(-logits.shape[1] // 32))
    if tuple(bits.shape) != shape or bits.dtype != torch.int32 or not bits.is_contiguous():
        raise ValueError(f"bits {tuple(bits.shape)} {bits.dtype}, not {shape} torch.int32")
    if uses_triton(logits) and logits.stride(1) == 1:
        from kernels.sampling import triton_mask

        triton_mask.mask(logits, rows, bits)
        return
    (cpu_mask if cpu_mask.supports(logits) else naive).mask(logits, rows, bits)


def sample(
    logits: torch.Tensor, rows: torch.Tensor, filters: Filters, uniforms: torch.Tensor
) -> torch.Tensor:
    """As `kernels.sampling.naive.sample`. Which rows there are is not checked.

    Raises: ValueError for shapes or dtypes that do not fit together.
    """
    _check_logits(logits)
    count = len(rows)
    _check_each("rows", rows, torch.int64)
    _check_each("uniforms", uniforms, torch.float64, count)
    _check_each("temperature", filters.temperature, torch.float32, count)
    for name, values, dtype in (
        ("top_k", filters.top_k, torch.int64),
        ("top_p", filters.top_p, torch.float32),
        ("min_p", filters.min_p, torch.float32),
    ):
        if values is not None:
            _check_each(name, values, dtype, count)
    if cpu.supports(logits) and not uses_triton(logits):
        return cpu_sample.sample(logits, rows, filters, uniforms)
    if uses_triton(logits):
        from kernels.sampling import triton_sample

        return triton_sample.sample(logits, rows, filters, uniforms)
    return naive.sample(logits, rows, filters, uniforms)


def _check_logits(logits: torch.Tensor) -> None:
    if logits.dim() != 2 or not logits.shape[1]:
        raise ValueError(f"logits {tuple(logits.shape)} are not [n, vocab]")


def _check_each(
    name: str, values: torch.Tensor, dtype: torch.dtype, count: int | None = None
) -> None:
    """[count] contiguous values; count None: any number."""
    shape = (len(values) if count is None else count,) if values.dim() else ()
    if values.dim() != 1 or tuple(values.shape) != shape or values.dtype != dtype:
        raise ValueError(
            f"{name} {tuple(values.shape)} {values.dtype}, not"
            f" [{'n' if count is None else count}] {dtype}"
        )
    if not values.is_contiguous():
        raise ValueError(f"{name} is not contiguous")
