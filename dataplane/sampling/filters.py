"""Turning logits into the distribution that a request asked for. Order as in transformers:
penalties, temperature, top_k, top_p, min_p."""

from __future__ import annotations

import torch


def penalize(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    output: torch.Tensor,
    *,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    """Applies penalties to one row, in place.

    logits: [vocab] float32. tokens: [n] int64, prompt and output. output: [m] int64.
    repetition: divides positive and multiplies negative logits of `tokens` (Keskar et al. 2019).
    presence, frequency: subtracted once, or per occurrence, for tokens in the output (as OpenAI's
    API defines them).
    """
    if repetition != 1.0:
        seen = torch.zeros_like(logits, dtype=torch.bool).index_fill_(0, tokens, True)
        # A tiny penalty overflows: two infinite logits would make no distribution.
        divided = (logits / repetition).clamp(max=torch.finfo(logits.dtype).max)
        penalized = torch.where(logits > 0, divided, logits * repetition)
        logits.copy_(torch.where(seen, penalized, logits))
    if output.numel() and (presence or frequency):
        counts = torch.zeros_like(logits)
        counts.index_add_(0, output, torch.ones_like(output, dtype=logits.dtype))
        logits -= torch.where(counts > 0, presence + frequency * counts, 0.0)


def filter_logits(
    logits: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
) -> torch.Tensor:
    """Probabilities after the filters, rows summing to 1. A filter is None when no row has it.

    logits: [n, vocab] float32, temperature applied.
    top_k: [n] int64, 0 keeps all. top_p, min_p: [n] float32.
    """
    vocab = logits.shape[-1]
    if top_k is not None or top_p is not None:
        ranked = logits.sort(dim=-1, descending=True).values
        if top_k is not None:
            k = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab)
            kth = ranked.gather(-1, k.unsqueeze(-1) - 1)
            logits = logits.masked_fill(logits < kth, float("-inf"))
            ranked = ranked.masked_fill(ranked < kth, float("-inf"))
        if top_p is not None:
            mass = ranked.softmax(dim=-1)
            # Kept: tokens before which less than top_p has been collected.
            kept = (mass.cumsum(dim=-1) - mass < top_p.unsqueeze(-1)).sum(dim=-1, keepdim=True)
            least = ranked.gather(-1, kept.clamp(min=1) - 1)
            nucleus = (logits >= least) | (top_p.unsqueeze(-1) >= 1.0)
            logits = logits.masked_fill(~nucleus, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if min_p is not None:
        least = min_p.unsqueeze(-1) * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities
