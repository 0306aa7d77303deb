"""Choosing tokens by logits or probabilities: plain torch, which GPUs use where there is no kernel.
Nothing here makes the host wait for the device."""

from __future__ import annotations

import torch

from kernels.sampling.arguments import Filters, Histories


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of each row's highest logits, and whether the row says anything.

    logits: [n, vocab]
    Returns ids, [n] int64, any token where the row is not finite; and [n] bool: the highest logit
    is finite, and none is NaN.
    """
    best, ids = logits.max(dim=-1)
    return ids, best.isfinite()


def penalize(
    logits: torch.Tensor, histories: Histories, previous_ids: torch.Tensor | None = None
) -> None:
    """Applies penalties in place.

    Semantics, for each row, each token t of it once:
        x[t] = min(x[t] / repetition, the highest float32) if x[t] > 0 else x[t] * repetition
        x[t] -= presence + frequency * (occurrences of t in the output), if there are any
    where the tokens are the row's of `histories`, then the unread one, which is output.

    logits: [num_rows, vocab] float32. previous_ids: [any] int64; None only if no token is unread.
    """
    num_rows, vocab = len(histories.rows), logits.shape[-1]
    total = len(histories.tokens)
    device = logits.device
    owners = torch.repeat_interleave(
        torch.arange(num_rows, device=device), histories.indptr.diff(), output_size=total
    )
    positions = torch.arange(total, device=device) - histories.indptr[owners]
    is_output = positions >= histories.num_prompt[owners]
    places = owners * vocab + histories.tokens
    seen = logits.new_zeros(num_rows * vocab)
    counts = logits.new_zeros(num_rows * vocab)
    # Sums of ones are exact in whatever order they are made.
    seen.index_add_(0, places, logits.new_ones(total))
    counts.index_add_(0, places, is_output.to(logits.dtype))
    if previous_ids is not None:
        follows = (histories.unread >= 0).to(logits.dtype)
        tokens = previous_ids[histories.unread.clamp(min=0)]
        places = torch.arange(num_rows, device=device) * vocab + tokens
        seen.index_add_(0, places, follows)
        counts.index_add_(0, places, follows)
    seen, counts = seen.view(num_rows, vocab), counts.view(num_rows, vocab)
    x = logits[histories.rows]
    repetition = histories.repetition.unsqueeze(-1)
    # A tiny penalty overflows: two infinite logits would make no distribution.
    divided = (x / repetition).clamp(max=torch.finfo(x.dtype).max)
    x = torch.where(seen > 0, torch.where(x > 0, divided, x * repetition), x)
    presence, frequency = histories.presence.unsqueeze(-1), histories.frequency.unsqueeze(-1)
    x = x - torch.where(counts > 0, presence + frequency * counts, 0.0)
    logits.index_copy_(0, histories.rows, x)


def mask(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """Leaves rows only the tokens of their bits, in place.

    Semantics, for each of the n rows r and each token t:
        x[rows[r], t] = -inf  unless bit t % 32 of bits[r, t // 32] is 1

    logits: [num_rows, vocab] float32. rows: [n] int64, each once.
    bits: [n, ceil(vocab / 32)] int32.
    """
    vocab = logits.shape[-1]
    at = torch.arange(vocab, device=logits.device)
    allowed = (bits[:, at // 32] >> (at % 32).int()) & 1
    logits.index_copy_(0, rows, logits[rows].masked_fill(allowed == 0, float("-inf")))


def logprobs(
    logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What tokens' log-probabilities are in some rows.

    Semantics, for each of the n rows r, with y = log_softmax(x[rows[r]]) in float32:
        chosen[r] = y[ids[r]];  top_ids[r], top[r] = the num_top highest of y, highest first

    logits: [num_rows, vocab]. rows, ids: [n] int64. num_top: at most vocab.
    Returns chosen [n] float32, top_ids [n, num_top] int64, top [n, num_top] float32; any numbers
    where a row is not finite, but top_ids of the vocabulary.
    """
    y = logits[rows].float().log_softmax(dim=-1)
    top = y.topk(num_top, dim=-1)
    return y.gather(-1, ids.unsqueeze(-1)).squeeze(-1), top.indices, top.values


def probabilities(logits: torch.Tensor, filters: Filters) -> torch.Tensor:
    """What the filters leave of each row, not scaled to any sum.

    Semantics, for each row, with p = softmax(x / temperature):
        top_k keeps x[t] that at most top_k - 1 others exceed;
        top_p of those keeps x[t] where what exceeds it has less than top_p of their sum of p;
        min_p of those keeps p[t] that is at least min_p of the highest.

    logits: [n, vocab]
    Returns [n, vocab] float32: p where it is kept, relative to the row's highest, else 0.
    """
    x = logits.float()
    # Centred first, so that a tiny temperature cannot overflow.
    centred = x - x.amax(dim=-1, keepdim=True)
    weights = (centred / filters.temperature.unsqueeze(-1)).exp()
    if filters.top_k is not None or filters.top_p is not None:
        ranked, order = centred.sort(dim=-1, descending=True)
        least = ranked[:, -1:]
        mass = weights.gather(-1, order).double()
        if filters.top_k is not None:
            vocab = x.shape[-1]
            k = torch.where(filters.top_k > 0, filters.top_k, vocab).clamp(max=vocab)
            least = ranked.gather(-1, k.unsqueeze(-1) - 1)
            mass = mass.masked_fill(ranked < least, 0.0)
        if filters.top_p is not None:
            top_p = filters.top_p.double().unsqueeze(-1)
            # Kept: tokens before which less than top_p has been collected.
            before = mass.cumsum(dim=-1) - mass
            kept = (before < top_p * mass.sum(dim=-1, keepdim=True)).sum(dim=-1, keepdim=True)
            nucleus = ranked.gather(-1, kept.clamp(min=1) - 1)
            least = torch.where(top_p < 1.0, torch.maximum(least, nucleus), least)
        weights = weights.masked_fill(centred < least, 0.0)
    if filters.min_p is not None:
        weights = weights.masked_fill(weights < filters.min_p.unsqueeze(-1), 0.0)
    return weights


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


def sample(
    logits: torch.Tensor, rows: torch.Tensor, filters: Filters, uniforms: torch.Tensor
) -> torch.Tensor:
    """`draw` from the `probabilities` of some rows.

    logits: [num_rows, vocab]. rows: [n] int64. uniforms: [n] float64 in [0, 1).
    Returns [n] int64; any token where a row is not finite.
    """
    return draw(probabilities(logits[rows], filters), uniforms)
