"""Choosing tokens by logits or probabilities: plain torch."""

from __future__ import annotations

import torch


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of each row's highest logits, and whether the row says anything.

    logits: [n, vocab]
    Returns ids, [n] int64, any token where the row is not finite; and [n] bool: the highest logit
    is finite, and none is NaN.
    """
    best, ids = logits.max(dim=-1)
    return ids, best.isfinite()


def draw(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Inverse-transform sampling in order of token id.

    Semantics, for each row:
        the first token t with p[t] > 0 and p[0] + … + p[t] > u * sum(p), summed in float64;
        the last one with p[t] > 0 where rounding leaves none; any token where no p is above 0.

    probabilities: [n, vocab] float32, not negative. uniforms: [n] float64 in [0, 1).
    Returns [n] int64.
    """
    cumulative = probabilities.double().cumsum(dim=-1)
    target = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    # Rounding may carry past the last token of non-zero probability.
    last = probabilities.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(dim=-1)
    return torch.minimum(chosen, last)
