"""What sampling needs of the sequences of a step, as tensors, made before the step is launched.

All that depends on tokens which the host has not read yet is left to the device: such a token is an
index into the ids that the step before sampled. So no sequence, whatever its sampling, must wait
for its last token before its next step can be launched. Only the mask of constrained rows must be
made of their last token; it is added when that was read, while the step's forward pass runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from dataplane.channel import Sampling
from dataplane.sampling.history import IdArray
from dataplane.sampling.random_numbers import uniform
from kernels.gpu.staging import staged, staged_together
from kernels.sampling.arguments import Filters, Histories

# Denormal numbers are taken for 0, which temperatures are divided by.
_COLDEST = torch.finfo(torch.float32).tiny


class Row(NamedTuple):
    """What sampling must know of a sequence. `banned` may not be chosen now (min_tokens).
    is_constrained: it has a row of the step's mask, which says that, too."""

    sampling: Sampling
    tokens: Sequence[int] | IdArray  # prompt plus output; not kept
    num_prompt: int
    banned: Sequence[int]
    unread: int = -1
    """Where, among the ids that the step before sampled, the token is that follows `tokens`;
    -1: there is none."""
    is_constrained: bool = False
    num_drafts: int = 0
    """That stand between those tokens and the one to sample. Penalties would have to know them."""

    @property
    def num_output(self) -> int:
        """Tokens generated before the one to sample: its position in the random numbers."""
        return len(self.tokens) - self.num_prompt + (self.unread >= 0) + self.num_drafts


@dataclass(frozen=True)
class Draws:
    """The rows that are drawn at random."""

    rows: torch.Tensor  # [num_drawn] int64: among the changed ones, where any are changed
    filters: Filters
    uniforms: torch.Tensor  # [num_drawn] float64


@dataclass(frozen=True)
class Biases:
    """What is added to logits; each pair of row and token once."""

    rows: torch.Tensor  # [num_biases] int64: changed rows
    tokens: torch.Tensor  # [num_biases] int64
    values: torch.Tensor  # [num_biases] float32


@dataclass(frozen=True)
class SamplingPlan:
    """changed: rows whose logits are changed first, and those drawn at random with them. None: the
    logits are chosen from as they are. asked: rows that want logprobs, and how many alternatives
    each. Where rows are constrained, sampling waits for `with_mask`."""

    changed: torch.Tensor | None  # [num_changed] int64: which rows
    histories: Histories | None  # of changed rows
    biases: Biases | None  # of changed rows
    banned: tuple[torch.Tensor, torch.Tensor] | None  # changed rows, and the token ids banned there
    constrained: torch.Tensor | None  # [num_constrained] int64: changed rows
    draws: Draws | None
    asked: torch.Tensor | None  # [num_asked] int64: which rows
    num_alternatives: Sequence[tuple[int, int]]  # (row, number) of the asked
    mask: torch.Tensor | None = None  # [num_constrained, ceil(vocab / 32)] int32

    @staticmethod
    def of(rows: Sequence[Row], device: torch.device) -> SamplingPlan:
        asked = [at for at, row in enumerate(rows) if row.sampling.logprobs >= 0]
        special: list[int] = []
        if any(_is_changed(row) for row in rows):
            special = [at for at, row in enumerate(rows) if not _is_plain(row)]
        chosen = [rows[at] for at in special] or rows
        return SamplingPlan(
            changed=_ids(special, device) if special else None,
            histories=_histories(chosen, device) if special else None,
            biases=_biases(chosen, device),
            banned=_banned(chosen, device),
            constrained=_constrained(chosen, device),
            draws=_draws(chosen, device),
            asked=_ids(asked, device) if asked else None,
            num_alternatives=[(at, rows[at].sampling.logprobs) for at in asked],
        )

    def with_mask(self, words: np.ndarray[Any, np.dtype[np.int32]]) -> SamplingPlan:
        """words: [num_constrained, ceil(vocab / 32)], of the constrained rows in their order; not
        to be changed any more."""
        assert self.constrained is not None and len(words) == len(self.constrained)
        (mask,) = staged_together([words], self.constrained.device)
        return replace(self, mask=mask)


def _is_plain(row: Row) -> bool:
    return row.sampling.temperature == 0.0 and not _is_changed(row)


def _is_changed(row: Row) -> bool:
    return (
        bool(row.banned)
        or row.is_constrained
        or bool(row.sampling.logit_bias)
        or row.sampling.has_penalty
    )


def _histories(rows: Sequence[Row], device: torch.device) -> Histories | None:
    penalized = [at for at, row in enumerate(rows) if row.sampling.has_penalty]
    if not penalized:
        return None
    chosen = [rows[at] for at in penalized]
    tokens = np.concatenate([np.asarray(row.tokens, dtype=np.int64) for row in chosen])
    ends = np.cumsum([0, *(len(row.tokens) for row in chosen)])
    samplings = [row.sampling for row in chosen]
    factors = staged(
        [
            [each.repetition_penalty for each in samplings],
            [each.presence_penalty for each in samplings],
            [each.frequency_penalty for each in samplings],
        ],
        torch.float32,
        device,
    )
    return Histories(
        _ids(penalized, device),
        _ids(tokens, device),
        _ids(ends, device),
        _ids([row.num_prompt for row in chosen], device),
        _ids([row.unread for row in chosen], device),
        *factors,
    )


def _banned(rows: Sequence[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    pairs = [(at, token) for at, row in enumerate(rows) for token in row.banned]
    if not pairs:
        return None
    return _ids([at for at, _ in pairs], device), _ids([token for _, token in pairs], device)


def _biases(rows: Sequence[Row], device: torch.device) -> Biases | None:
    pairs = [(at, *pair) for at, row in enumerate(rows) for pair in row.sampling.logit_bias]
    if not pairs:
        return None
    owners, tokens, values = zip(*pairs, strict=True)
    return Biases(_ids(owners, device), _ids(tokens, device), staged(values, torch.float32, device))


def _constrained(rows: Sequence[Row], device: torch.device) -> torch.Tensor | None:
    constrained = [at for at, row in enumerate(rows) if row.is_constrained]
    return _ids(constrained, device) if constrained else None


def _draws(rows: Sequence[Row], device: torch.device) -> Draws | None:
    drawn = [at for at, row in enumerate(rows) if row.sampling.temperature > 0.0]
    if not drawn:
        return None
    samplings = [rows[at].sampling for at in drawn]
    temperature = [max(each.temperature, _COLDEST) for each in samplings]
    top_k = [each.top_k for each in samplings]
    top_p = [each.top_p for each in samplings]
    min_p = [each.min_p for each in samplings]
    uniforms = [uniform(rows[at].sampling.seed, rows[at].num_output) for at in drawn]
    return Draws(
        rows=_ids(drawn, device),
        filters=Filters(
            temperature=staged(temperature, torch.float32, device),
            top_k=_ids(top_k, device) if any(k > 0 for k in top_k) else None,
            top_p=staged(top_p, torch.float32, device) if any(p < 1.0 for p in top_p) else None,
            min_p=staged(min_p, torch.float32, device) if any(p > 0.0 for p in min_p) else None,
        ),
        uniforms=staged(uniforms, torch.float64, device),
    )


def _ids(values: ArrayLike, device: torch.device) -> torch.Tensor:
    return staged(values, torch.int64, device)
