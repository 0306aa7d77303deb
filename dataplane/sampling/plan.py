"""What sampling needs of the sequences of a step, as tensors, made before the step is launched.

All that depends on tokens which the host has not read yet is left to the device: such a token is an
index into the ids that the step before sampled. So no sequence, whatever its sampling, must wait
for its last token before its next step can be launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dataplane.channel import Sampling
from dataplane.sampling.random_numbers import uniform
from dataplane.staging import staged

# Denormal numbers are taken for 0, which temperatures are divided by.
_COLDEST = torch.finfo(torch.float32).tiny


class Row(NamedTuple):
    """What sampling must know of a sequence. `banned` may not be chosen now (min_tokens)."""

    sampling: Sampling
    tokens: Sequence[int]  # prompt plus output; not kept
    num_prompt: int
    banned: Sequence[int]
    unread: int = -1
    """Where, among the ids that the step before sampled, the token is that follows `tokens`;
    -1: there is none."""

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt + (self.unread >= 0)


@dataclass(frozen=True)
class History:
    """The tokens of a row with penalties: `known`, then the unread one if there is one."""

    at: int  # which special row
    known: torch.Tensor  # [num_known] int64
    num_prompt: int
    unread: torch.Tensor | None  # [1] int64: index into the ids of the step before
    sampling: Sampling

    def tokens(self, previous_ids: torch.Tensor | None) -> torch.Tensor:
        if self.unread is None:
            return self.known
        assert previous_ids is not None
        return torch.cat((self.known, previous_ids[self.unread]))


@dataclass(frozen=True)
class Draws:
    """The special rows that are drawn at random. A filter is None when no row has it."""

    rows: torch.Tensor  # [num_drawn] int64: which special rows
    temperature: torch.Tensor  # [num_drawn] float32
    top_k: torch.Tensor | None  # [num_drawn] int64
    top_p: torch.Tensor | None  # [num_drawn] float32
    min_p: torch.Tensor | None  # [num_drawn] float32
    uniforms: torch.Tensor  # [num_drawn] float64


@dataclass(frozen=True)
class SamplingPlan:
    """special: rows that are not merely the likeliest token. asked: rows that want logprobs, and
    how many alternatives each."""

    special: torch.Tensor | None  # [num_special] int64: which rows
    histories: Sequence[History]
    banned: tuple[torch.Tensor, torch.Tensor] | None  # special rows, and the token ids banned there
    draws: Draws | None
    asked: torch.Tensor | None  # [num_asked] int64: which rows
    num_alternatives: Sequence[tuple[int, int]]  # (row, number) of the asked

    @staticmethod
    def of(rows: Sequence[Row], device: torch.device) -> SamplingPlan:
        special = [at for at, row in enumerate(rows) if not _is_plain(row)]
        asked = [at for at, row in enumerate(rows) if row.sampling.logprobs >= 0]
        chosen = [rows[at] for at in special]
        return SamplingPlan(
            special=_ids(special, device) if special else None,
            histories=[
                _history(at, row, device)
                for at, row in enumerate(chosen)
                if _has_penalty(row.sampling)
            ],
            banned=_banned(chosen, device),
            draws=_draws(chosen, device),
            asked=_ids(asked, device) if asked else None,
            num_alternatives=[(at, rows[at].sampling.logprobs) for at in asked],
        )


def _is_plain(row: Row) -> bool:
    return row.sampling.temperature == 0.0 and not row.banned and not _has_penalty(row.sampling)


def _has_penalty(sampling: Sampling) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def _history(at: int, row: Row, device: torch.device) -> History:
    unread = _ids([row.unread], device) if row.unread >= 0 else None
    return History(at, _ids(row.tokens, device), row.num_prompt, unread, row.sampling)


def _banned(rows: Sequence[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    pairs = [(at, token) for at, row in enumerate(rows) for token in row.banned]
    if not pairs:
        return None
    return _ids([at for at, _ in pairs], device), _ids([token for _, token in pairs], device)


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
        temperature=staged(temperature, torch.float32, device),
        top_k=_ids(top_k, device) if any(k > 0 for k in top_k) else None,
        top_p=staged(top_p, torch.float32, device) if any(p < 1.0 for p in top_p) else None,
        min_p=staged(min_p, torch.float32, device) if any(p > 0.0 for p in min_p) else None,
        uniforms=staged(uniforms, torch.float64, device),
    )


def _ids(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return staged(values, torch.int64, device)
