"""What a step's results become: tokens of requests that go on, ends of others."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

from dataplane.engine.chunk import Failure
from dataplane.engine.constrained import Constrained
from dataplane.engine.pipeline import Collected
from dataplane.engine.refusals import non_finite
from dataplane.engine.scheduler import Scheduler
from dataplane.engine.sequence import Sequence
from dataplane.engine.step_result import StepResult
from dataplane.errors import ConstraintError
from dataplane.sampling.sampler import Sampled


class Outcomes:
    """sequences: by handle, all that are scheduled and have not ended. num_generated: tokens since
    the start."""

    def __init__(
        self, scheduler: Scheduler, constrained: Constrained, eos_token_ids: frozenset[int]
    ) -> None:
        self._scheduler = scheduler
        self._constrained = constrained
        self._eos = eos_token_ids
        self.sequences: dict[int, Sequence] = {}
        self.num_generated = 0

    def take_scores(self, step: Collected, result: StepResult) -> list[Sequence]:
        """Log-probabilities of prompts. Returns whose are no numbers: these have failed."""
        ruined: list[Sequence] = []
        scored = [chunk for chunk in step.chunks if chunk.num_scored]
        for chunk, scores in zip(scored, step.scores, strict=True):
            sequence = chunk.sequence
            if sequence.handle not in self.sequences:
                continue
            sequence.prompt_logprobs[chunk.start : chunk.start + chunk.num_scored] = scores
            if any(math.isnan(each.logprob) for each in scores):
                self.fail(Failure(sequence, non_finite(sequence)), result)
                ruined.append(sequence)
        return ruined

    def take(
        self, sequence: Sequence, sampled: Seq[Sampled], now_s: float, result: StepResult
    ) -> bool:
        """sampled: one after the other; what follows its end is dropped. False when one is no
        token: it fails then, having got those before."""
        first = sequence.first_token_s is None
        taken, failure, finish, stop_token = list[Sampled](), None, "", -1
        for each in sampled:
            if each.token_id < 0:
                failure = Failure(sequence, non_finite(sequence))
                break
            sequence.tokens.append(each.token_id)
            try:
                self._constrained.push(sequence, each.token_id)
            except ConstraintError as error:
                self.end_with(Failure(sequence, error), now_s, result)
                return True
            taken.append(each)
            finish, stop_token = sequence.finish_reason(self._eos)
            if finish:
                break
        if taken:
            self._tell(sequence, taken, (finish, stop_token), now_s, result, first=first)
        if failure is not None:
            self.fail(failure, result)
        return failure is None

    def _tell(
        self,
        sequence: Sequence,
        taken: Seq[Sampled],
        ending: tuple[str, int],
        now_s: float,
        result: StepResult,
        *,
        first: bool,
    ) -> None:
        """Its new tokens. ending: `finish_reason` of it."""
        self.num_generated += len(taken)
        if first:
            sequence.first_token_s = now_s
        if len(taken) > 1:
            self._scheduler.accepted(sequence, len(taken) - 1, now_s)
        token_ids = [each.token_id for each in taken]
        logprobs = [each.logprobs for each in taken if each.logprobs]
        scores = sequence.take_scores() if first else []
        finish, stop_token = ending
        if not finish:
            result.tokens(sequence, token_ids, logprobs, scores, first=first)
            return
        self._scheduler.remove(sequence, now_s)
        del self.sequences[sequence.handle]
        result.end(sequence, token_ids, logprobs, scores, finish=finish, stop_token=stop_token)

    def end_with(self, failure: Failure, now_s: float, result: StepResult) -> None:
        """As `fail`, and what it holds is freed."""
        self.fail(failure, result)
        self._scheduler.remove(failure.sequence, now_s)

    def fail(self, failure: Failure, result: StepResult) -> None:
        """It has ended; what it holds is still its own."""
        self.sequences.pop(failure.sequence.handle, None)
        result.fail(failure.sequence, failure.error)
