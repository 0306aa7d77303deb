"""Mixtures of experts for tests, and what they mean, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.experts.weights import ExpertWeights
from kernels.gpu.dispatch import interpreting

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def random_experts(
    num_experts: int,
    hidden: int,
    inter: int,
    top_k: int,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    has_shared: bool = False,
    normalizes: bool = True,
    seed: int = 0,
) -> ExpertWeights:
    """In one piece where a GPU's kernels run, else apart."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) * shape[-1] ** -0.5
        return values.to(device, dtype)

    gate_up, down = normal(num_experts, 2 * inter, hidden), normal(num_experts, hidden, inter)
    is_whole = device == "cuda" or interpreting()
    return ExpertWeights(
        3 * normal(num_experts, hidden),
        gate_up if is_whole else [each.clone() for each in gate_up],
        down if is_whole else [each.clone() for each in down],
        normal(1, hidden) if has_shared else None,
        top_k,
        normalizes,
    )


def random_rows(num_tokens: int, hidden: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, hidden, generator=generator).to(dtype)


def expected_mixture(
    x: torch.Tensor,
    weights: ExpertWeights,
    activation: str,
    shared: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token and one expert at a time. The choice is made by logits in x's dtype. weights: not
    packed."""
    logits = F.linear(x, weights.router).double()
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, row in enumerate(logits.cpu().tolist()):
        chosen = sorted(range(len(row)), key=lambda expert: (-row[expert], expert))[: weights.top_k]
        shares = torch.tensor(row, dtype=torch.float64).softmax(0)[chosen]
        if weights.normalizes:
            shares = shares / shares.sum()
        wide = x[token].double().cpu()
        for expert, share in zip(chosen, shares, strict=True):
            gate_up = _plain(weights.gate_up[expert]) @ wide
            gate, up = gate_up.chunk(2)
            act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
            out[token] += share * (_plain(weights.down[expert]) @ (act * up))
        if shared is not None:
            assert weights.shared_gate is not None
            share = (weights.shared_gate[0].double().cpu() @ wide).sigmoid()
            out[token] += share * shared[token].double().cpu()
    return out


def _plain(matrix: object) -> torch.Tensor:
    assert isinstance(matrix, torch.Tensor) and matrix.dim() == 2
    return matrix.double().cpu()
