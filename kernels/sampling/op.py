"""Choosing tokens: checks, then the implementation for the device."""

from __future__ import annotations

import torch

from kernels.gpu.dispatch import uses_triton
from kernels.sampling import cpu, naive


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `kernels.sampling.naive.likeliest`.

    Raises: ValueError when logits are not [n, vocab] of some vocabulary.
    """
    if logits.dim() != 2 or not logits.shape[1]:
        raise ValueError(f"logits {tuple(logits.shape)} are not [n, vocab]")
    return (cpu if cpu.supports(logits) else naive).likeliest(logits)


def draw(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """As `kernels.sampling.naive.draw`.

    Raises: ValueError for shapes or dtypes that do not fit together.
    """
    if probabilities.dim() != 2 or uniforms.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)}, uniforms {tuple(uniforms.shape)}"
        )
    if probabilities.dtype != torch.float32 or uniforms.dtype != torch.float64:
        raise ValueError(f"probabilities {probabilities.dtype}, uniforms {uniforms.dtype}")
    if not probabilities.shape[1]:
        raise ValueError("a vocabulary of no tokens")
    if uses_triton(probabilities):
        from kernels.sampling import triton_draw

        return triton_draw.draw(probabilities, uniforms)
    return naive.draw(probabilities, uniforms)
