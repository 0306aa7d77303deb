"""A mixture of experts: plain torch. What runs where nothing is faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.experts.lora import ExpertLora, add_of_expert
from kernels.experts.weights import ExpertWeights
from kernels.fused.naive import gated_activation
from kernels.linear.op import linear
from kernels.lora.op import lora_apply


def route(
    x: torch.Tensor,
    router: torch.Tensor,
    top_k: int,
    *,
    normalizes: bool,
    lora: ExpertLora | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Semantics: the top_k largest of softmax(x @ router.T), of equal ones those of lower number.

    x: [num_tokens, hidden], router: [experts, hidden]. The softmax is in float32, of logits in x's
    dtype, as in transformers.
    Returns [num_tokens, top_k] int64, each row ascending, and their shares, float32, which are
    divided by their sum if `normalizes`.
    """
    logits = F.linear(x, router)
    if lora is not None and lora.router is not None:
        lora_apply(logits, x, lora.layer_pages, lora.router)
    shares = logits.float().softmax(-1)
    order = shares.sort(dim=-1, descending=True, stable=True).indices
    chosen = order[:, :top_k].sort(-1).values
    weights = shares.gather(1, chosen)
    if normalizes:
        weights = weights / weights.sum(-1, keepdim=True)
    return chosen, weights


def mix_experts(
    x: torch.Tensor,
    weights: ExpertWeights,
    activation: str,
    shared: torch.Tensor | None = None,
    lora: ExpertLora | None = None,
) -> torch.Tensor:
    """Semantics: sum over a token's experts e, ascending, of
    share[e] * (act(x @ gate[e].T) * (x @ up[e].T)) @ down[e].T
    in float32; plus sigmoid(x @ shared_gate.T) * shared where there is a shared expert. lora: adds
    to the router's, gate's, up's and down's products.

    x, shared: [num_tokens, hidden]; returns the same
    """
    chosen, shares = route(
        x, weights.router, weights.top_k, normalizes=weights.normalizes, lora=lora
    )
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in chosen.unique().tolist():
        rows, place = torch.where(chosen == expert)
        gate_up = linear(x[rows], weights.gate_up[expert])
        if lora is not None and lora.gate_up is not None:
            add_of_expert(gate_up, x[rows], lora.layer_pages, lora.gate_up, expert, rows)
        inner = gated_activation(gate_up, activation)
        y = linear(inner, weights.down[expert])
        if lora is not None and lora.down is not None:
            add_of_expert(y, inner, lora.layer_pages, lora.down, expert, rows)
        total.index_add_(0, rows, y.float() * shares[rows, place, None])
    if shared is not None:
        assert weights.shared_gate is not None
        total += F.linear(x.float(), weights.shared_gate.float()).sigmoid() * shared.float()
    return total.to(x.dtype)
