"""Compiling mixtures of experts before the first request, not in its first step."""

from __future__ import annotations

from collections.abc import Iterable

from kernels.experts.op import mix_experts
from kernels.experts.triton_products import FEW_SLOTS
from kernels.experts.weights import ExpertWeights


def warm_up(layers: Iterable[ExpertWeights], activation: str) -> None:
    """Compiles what steps of any number of tokens launch, or loads what an earlier process
    compiled, once for all layers alike. Seconds the first time ever."""
    done: set[object] = set()
    for weights in layers:
        key = (weights.router.shape, weights.shared_gate is None, weights.top_k)
        if key in done:
            continue
        done.add(key)
        many = FEW_SLOTS * weights.num_experts // weights.top_k + 1
        for num_tokens in (1, many):
            x = weights.router.new_zeros(num_tokens, weights.router.shape[1])
            for delta in (None,) if weights.shared_gate is None else (None, x):
                shared = None if weights.shared_gate is None else x
                mix_experts(x, weights, activation, shared, delta)
