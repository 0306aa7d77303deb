"""The next token of each sequence of a step. Nothing here waits for the device but `Picks.read`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dataplane.channel import TokenLogprobs
from dataplane.sampling.plan import Draws, SamplingPlan
from dataplane.sampling.scores import Scores
from kernels.sampling.op import likeliest, mask, penalize, sample


class Sampled(NamedTuple):
    """`token_id` is -1 when the logits are not finite."""

    token_id: int
    logprobs: TokenLogprobs | None


class Logprobs(NamedTuple):
    """Of the rows that asked."""

    chosen: torch.Tensor  # [num_asked] float32
    top_ids: torch.Tensor  # [num_asked, most] int64
    top: torch.Tensor  # [num_asked, most] float32


@dataclass(frozen=True)
class Picks:
    """What was sampled. ids are tokens of the vocabulary even where the logits are not finite."""

    plan: SamplingPlan
    ids: torch.Tensor  # [num_rows] int64
    finite: torch.Tensor  # [num_rows] bool
    logprobs: Logprobs | None
    scores: Scores | None = None  # of other rows of the step

    def to_host(self) -> Picks:
        """A copy in host memory, there once what the stream was given so far has run."""

        def host(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to("cpu", non_blocking=True)

        logprobs = Logprobs(*map(host, self.logprobs)) if self.logprobs else None
        scores = self.scores.to_host() if self.scores else None
        return Picks(self.plan, host(self.ids), host(self.finite), logprobs, scores)

    def read(self) -> list[Sampled]:
        """One for each row."""
        ids, finite = self.ids.tolist(), self.finite.tolist()
        logprobs = self._read_logprobs()
        return [
            Sampled(token, logprobs.get(at)) if ok else Sampled(-1, None)
            for at, (token, ok) in enumerate(zip(ids, finite, strict=True))
        ]

    def _read_logprobs(self) -> dict[int, TokenLogprobs]:
        if self.logprobs is None:
            return {}
        columns = zip(*(each.tolist() for each in self.logprobs), strict=True)
        return {
            row: TokenLogprobs(chosen, top_ids[:count], top[:count])
            for (row, count), (chosen, top_ids, top) in zip(
                self.plan.num_alternatives, columns, strict=True
            )
        }


@torch.inference_mode()
def pick(
    logits: torch.Tensor, plan: SamplingPlan, previous_ids: torch.Tensor | None = None
) -> Picks:
    """Rows do not influence each other.

    logits: [num_rows, vocab], the model's dtype, on the device of the plan
    previous_ids: [any] int64: what the step before sampled; what `Row.unread` points into
    """
    ids, finite = likeliest(logits)
    if plan.changed is not None:
        changed = logits[plan.changed].float()
        _change(changed, plan, previous_ids)
        chosen = _draw(changed, likeliest(changed)[0], plan.draws)
        ids = ids.index_copy(0, plan.changed, chosen)
    else:
        ids = _draw(logits, ids, plan.draws)
    return Picks(plan, ids, finite, _logprobs(logits, plan, ids))


def _change(logits: torch.Tensor, plan: SamplingPlan, previous_ids: torch.Tensor | None) -> None:
    """In place, [num_changed, vocab] float32."""
    if (biases := plan.biases) is not None:
        where = (biases.rows, biases.tokens)
        logits.index_put_(where, logits[where] + biases.values)
    if plan.histories is not None:
        penalize(logits, plan.histories, previous_ids)
    if plan.banned is not None:
        # A number would be copied to the device first, and the host wait for that copy.
        logits.index_put_(plan.banned, logits.new_full((), float("-inf")))
    if plan.constrained is not None:
        assert plan.mask is not None
        mask(logits, plan.constrained, plan.mask)


def _draw(logits: torch.Tensor, ids: torch.Tensor, draws: Draws | None) -> torch.Tensor:
    """ids, but of the rows that are drawn."""
    if draws is None:
        return ids
    drawn = sample(logits, draws.rows, draws.filters, draws.uniforms)
    return ids.index_copy(0, draws.rows, drawn)


def _logprobs(logits: torch.Tensor, plan: SamplingPlan, ids: torch.Tensor) -> Logprobs | None:
    if plan.asked is None:
        return None
    logprobs = logits[plan.asked].float().log_softmax(dim=-1)
    most = max(count for _, count in plan.num_alternatives)
    top = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
    chosen = logprobs.gather(-1, ids[plan.asked].unsqueeze(-1)).squeeze(-1)
    return Logprobs(chosen, top.indices, top.values)
