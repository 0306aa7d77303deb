"""The next token of each sequence of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dataplane.channel import Sampling, TokenLogprobs
from dataplane.sampling.filters import draw, filter_logits, penalize
from dataplane.sampling.random_numbers import uniform


class Row(NamedTuple):
    """What sampling must know of a sequence. `banned` may not be chosen now (min_tokens)."""

    sampling: Sampling
    tokens: Sequence[int]  # prompt plus output; not copied
    num_prompt: int
    banned: Sequence[int]


class Sampled(NamedTuple):
    """`token_id` is -1 when the logits are not finite."""

    token_id: int
    logprobs: TokenLogprobs | None


@torch.inference_mode()
def sample(logits: torch.Tensor, rows: Sequence[Row]) -> list[Sampled]:
    """logits: [len(rows), vocab], the model's dtype. Rows do not influence each other."""
    best, greedy = logits.max(dim=-1)
    tokens = greedy.tolist()
    finite = best.isfinite().tolist()
    plain = [index for index, row in enumerate(rows) if _is_plain(row)]
    if len(plain) < len(rows):
        chosen = set(plain)
        special = [i for i in range(len(rows)) if i not in chosen and finite[i]]
        if special:
            picked = _sample_special(logits[special].float(), [rows[i] for i in special])
            for index, token in zip(special, picked, strict=True):
                tokens[index] = token
    logprobs = _logprobs(logits, rows, tokens)
    return [
        Sampled(tokens[i], logprobs.get(i)) if finite[i] else Sampled(-1, None)
        for i in range(len(rows))
    ]


def _is_plain(row: Row) -> bool:
    return row.sampling.temperature == 0.0 and not row.banned and not _has_penalty(row.sampling)


def _has_penalty(sampling: Sampling) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def _sample_special(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    for row_logits, row in zip(logits, rows, strict=True):
        if _has_penalty(row.sampling):
            penalize(
                row_logits,
                row.tokens,
                row.tokens[row.num_prompt :],
                repetition=row.sampling.repetition_penalty,
                presence=row.sampling.presence_penalty,
                frequency=row.sampling.frequency_penalty,
            )
        if row.banned:
            row_logits[list(row.banned)] = float("-inf")
    tokens = logits.argmax(dim=-1).tolist()
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > 0.0]
    if drawn:
        picked = _draw(logits[drawn], [rows[i] for i in drawn])
        for index, token in zip(drawn, picked, strict=True):
            tokens[index] = token
    return tokens


def _draw(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    def column(values: list[float] | list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)

    temperature = column([row.sampling.temperature for row in rows], torch.float32)
    # Centred first, so that a tiny temperature cannot overflow.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature.unsqueeze(-1)
    probabilities = filter_logits(
        scaled,
        column([row.sampling.top_k for row in rows], torch.int64),
        column([row.sampling.top_p for row in rows], torch.float32),
        column([row.sampling.min_p for row in rows], torch.float32),
    )
    uniforms = [uniform(row.sampling.seed, len(row.tokens) - row.num_prompt) for row in rows]
    return draw(probabilities, column(uniforms, torch.float64)).tolist()


def _logprobs(
    logits: torch.Tensor, rows: Sequence[Row], tokens: Sequence[int]
) -> dict[int, TokenLogprobs]:
    asked = [i for i, row in enumerate(rows) if row.sampling.logprobs >= 0]
    if not asked:
        return {}
    logprobs = logits[asked].float().log_softmax(dim=-1)
    most = max(rows[i].sampling.logprobs for i in asked)
    top = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
    result: dict[int, TokenLogprobs] = {}
    for at, index in enumerate(asked):
        count = rows[index].sampling.logprobs
        result[index] = TokenLogprobs(
            float(logprobs[at, tokens[index]]),
            top.indices[at, :count].tolist(),
            top.values[at, :count].tolist(),
        )
    return result
