"""Log-probabilities of tokens that are known already: a prompt's, as the model expects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dataplane.channel import TokenLogprobs
from kernels.gpu.staging import staged

MAX_ROWS = 256
"""Of a step: each is a row of logits, where other tokens of a prompt need none."""

_ROWS_AT_ONCE = 16  # of float32 logits


class Scored(NamedTuple):
    """What one chunk of a prompt asks: of which rows of the step's logits, the tokens that came
    next, and how many alternatives to each."""

    rows: Sequence[int]
    targets: Sequence[int]
    num_alternatives: int


class Scores(NamedTuple):
    """Of all rows that are scored."""

    chosen: torch.Tensor  # [num_scored] float32
    top_ids: torch.Tensor  # [num_scored, most] int64
    top: torch.Tensor  # [num_scored, most] float32

    def to_host(self) -> Scores:
        """A copy in host memory, there once what the stream was given so far has run."""
        return Scores(*(each.to("cpu", non_blocking=True) for each in self))


@dataclass(frozen=True)
class ScorePlan:
    """sampling: the other rows, from which tokens are sampled."""

    asked: Sequence[Scored]
    rows: torch.Tensor  # [num_scored] int64
    targets: torch.Tensor  # [num_scored] int64
    sampling: torch.Tensor  # [num_sampling] int64

    @staticmethod
    def of(asked: Sequence[Scored], sampling: Sequence[int], device: torch.device) -> ScorePlan:
        rows = [row for each in asked for row in each.rows]
        targets = [token for each in asked for token in each.targets]
        return ScorePlan(
            asked,
            staged(rows, torch.int64, device),
            staged(targets, torch.int64, device),
            staged(sampling, torch.int64, device),
        )

    @torch.inference_mode()
    def score(self, logits: torch.Tensor) -> Scores:
        """logits: [num_logits, vocab], the model's dtype. Nothing waits for the device."""
        most = min(max(each.num_alternatives for each in self.asked), logits.shape[-1])
        parts = [
            _score(logits[rows].float(), targets, most)
            for rows, targets in zip(
                self.rows.split(_ROWS_AT_ONCE), self.targets.split(_ROWS_AT_ONCE), strict=True
            )
        ]
        return Scores(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def read(self, scores: Scores) -> list[list[TokenLogprobs]]:
        """Of each that asked, in their order. scores: in host memory."""
        columns = zip(*(each.tolist() for each in scores), strict=True)
        return [
            [
                TokenLogprobs(
                    chosen, top_ids[: asked.num_alternatives], top[: asked.num_alternatives]
                )
                for _, (chosen, top_ids, top) in zip(asked.rows, columns, strict=False)
            ]
            for asked in self.asked
        ]


def _score(
    logits: torch.Tensor, targets: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = logits.logsumexp(dim=-1, keepdim=True)
    top = logits.topk(most, dim=-1)
    chosen = logits.gather(-1, targets.unsqueeze(-1)) - total
    return chosen.squeeze(-1), top.indices, top.values - total
