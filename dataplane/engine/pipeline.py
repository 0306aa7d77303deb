"""Steps in flight: given to the device, not read yet.

A step's forward pass takes the tokens that the step before it sampled straight from the device, so
it can be launched before anybody has seen them. Only what constrained sequences may choose depends
on tokens that were read: a step with such rows is launched in two parts, its forward pass and, once
the step before it was collected, its sampling. The device runs the one while the host prepares the
other.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataplane.channel import TokenLogprobs
from dataplane.engine.chunk import Chunk
from dataplane.engine.device import Device, DeviceTime, Launched
from dataplane.engine.graphs import GraphStep
from dataplane.engine.sequence import Sequence
from dataplane.models.decoder import Batch, Decoder
from dataplane.pool.pool import PagePool
from dataplane.sampling.plan import Row, SamplingPlan
from dataplane.sampling.sampler import Picks, Sampled, pick
from dataplane.sampling.scores import Scored, ScorePlan
from kernels.gpu.staging import staged

DEPTH = 2
"""One step runs, and the next one is launched behind it. 1: nothing overlaps. More would gain
nothing: the device never waits for the second one to be scheduled."""


@dataclass(frozen=True)
class Collected:
    """A step that has run. sampled: of the chunks that sample, in their order, `num_sampled` of
    each. scores: of those that are scored, in theirs."""

    chunks: Seq[Chunk]
    sampled: Seq[Sampled]
    scores: Seq[list[TokenLogprobs]]
    time: DeviceTime


@dataclass
class _Flight:
    """launched: None while its sampling is yet to be launched."""

    chunks: Seq[Chunk]
    rows: dict[Sequence, int]  # where its token is among the sampled ones; of those without drafts
    launched: Launched[Picks] | None
    scoring: ScorePlan | None


@dataclass(frozen=True)
class _Logits:
    """What a forward pass leaves on the device; nothing of it is for the host."""

    logits: Tensor

    def to_host(self) -> _Logits:
        return self


@dataclass(frozen=True)
class _Unsampled:
    """A forward pass that was launched, and what sampling from it needs beside the mask."""

    forward: Launched[_Logits]
    plan: SamplingPlan
    before: Launched[Picks] | None


class _InTwoParts:
    """A step whose sampling was launched by itself. Between the two the device may have waited for
    the host."""

    def __init__(self, forward: Launched[_Logits], sampling: Launched[Picks]) -> None:
        self._forward = forward
        self._sampling = sampling

    @property
    def result(self) -> Picks:
        return self._sampling.result

    def is_done(self) -> bool:
        return self._sampling.is_done()

    def wait(self) -> tuple[Picks, DeviceTime]:
        picks, second = self._sampling.wait()
        _, first = self._forward.wait()
        return picks, DeviceTime(first.work_s + second.work_s, first.idle_s + second.idle_s)


class Pipeline:
    """At most `depth` steps, 1 or 2. Not thread-safe."""

    def __init__(self, decoder: Decoder, pool: PagePool, device: Device, depth: int) -> None:
        assert 1 <= depth <= DEPTH
        self._decoder = decoder
        self._pool = pool
        self._device = device
        self._depth = depth
        self._flights: deque[_Flight] = deque()
        self._unsampled: _Unsampled | None = None  # of the newest flight

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def is_full(self) -> bool:
        return len(self._flights) >= self._depth

    @property
    def is_idle(self) -> bool:
        """The device has run all that was launched."""
        if not self._flights:
            return True
        launched = self._flights[-1].launched
        return launched is not None and launched.is_done()

    @property
    def is_unsampled(self) -> bool:
        """The newest step waits for `sample`, without which no other can be launched."""
        return self._unsampled is not None

    def unread_row(self, sequence: Sequence) -> int:
        """Where the token is that the sequence got on the device, among those of the newest step;
        -1 when all its tokens are known."""
        if not sequence.num_unread:
            return -1
        assert sequence.num_unread == 1
        return self._flights[-1].rows[sequence]

    def launch(self, chunks: Seq[Chunk], step: Batch | GraphStep, rows: Seq[Row]) -> None:
        """step: of `chunks`; a batch, with any token where one is unread, or a graph that knows
        where unread ones are. rows: of those that sample, of each its token and then its drafts.
        Where one is constrained, `sample` must follow."""
        assert not self.is_full and not self.is_unsampled
        device = self._pool.device
        plan = SamplingPlan.of(rows, device)
        before = self._flights[-1].launched if self._flights else None
        forward = step.run if isinstance(step, GraphStep) else self._eager(chunks, step)

        scoring = _scoring(chunks, device)
        flight = _Flight(chunks, _rows_of(chunks), None, scoring)

        def whole() -> Picks:
            previous = before.result.ids if before else None
            with torch.inference_mode():
                return _picks(forward(previous), plan, previous, scoring)

        def first() -> _Logits:
            with torch.inference_mode():
                return _Logits(forward(before.result.ids if before else None))

        if plan.constrained is None:
            flight.launched = self._device.launch(whole)
        else:
            self._unsampled = _Unsampled(self._device.launch(first), plan, before)
        self._flights.append(flight)

    def sample(self, words: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        """Launches the newest step's sampling. words: the mask of its constrained rows, as
        `SamplingPlan.with_mask` takes it."""
        step, self._unsampled = self._unsampled, None
        assert step is not None
        plan, flight = step.plan.with_mask(words), self._flights[-1]

        def second() -> Picks:
            previous = step.before.result.ids if step.before else None
            return _picks(step.forward.result.logits, plan, previous, flight.scoring)

        flight.launched = _InTwoParts(step.forward, self._device.launch(second))

    def abandon(self) -> None:
        """Waits for what was launched; nobody learns what came of it."""
        if self._unsampled is not None:
            with contextlib.suppress(Exception):
                self._unsampled.forward.wait()
            self._unsampled = None
            self._flights.pop()
        while self._flights:
            with contextlib.suppress(Exception):
                self.collect()

    def collect(self) -> Collected:
        """Waits for the oldest step. Raises: what it raised."""
        flight = self._flights.popleft()
        assert flight.launched is not None
        picks, time = flight.launched.wait()
        scores = flight.scoring.read(picks.scores) if flight.scoring and picks.scores else []
        return Collected(flight.chunks, picks.read(), scores, time)

    def _eager(self, chunks: Seq[Chunk], batch: Batch) -> Callable[[Tensor | None], Tensor]:
        targets, sources = self._unread(chunks)
        feed = _feed(targets, sources, self._pool.device) if targets else None

        def forward(previous_ids: Tensor | None) -> Tensor:
            if feed is not None:
                assert previous_ids is not None
                feed(batch.token_ids, previous_ids)
            return self._decoder.forward(batch, self._pool.data, self._pool.page_tokens)

        return forward

    def _unread(self, chunks: Seq[Chunk]) -> tuple[list[int], list[int]]:
        """Rows of the batch whose token is unread, and where it is among the sampled ones."""
        targets: list[int] = []
        sources: list[int] = []
        start = 0
        for chunk in chunks:
            source = self.unread_row(chunk.sequence)
            if source >= 0:
                assert chunk.sure_end - chunk.start == 1
                targets.append(start)
                sources.append(source)
            start += chunk.num_tokens
        return targets, sources


def _rows_of(chunks: Seq[Chunk]) -> dict[Sequence, int]:
    """As `_Flight` takes them."""
    rows: dict[Sequence, int] = {}
    row = 0
    for chunk in chunks:
        if chunk.samples and not chunk.drafts:
            rows[chunk.sequence] = row
        row += chunk.num_sampled
    return rows


def _scoring(chunks: Seq[Chunk], device: torch.device) -> ScorePlan | None:
    """What is to be scored of a step, whose logits are in the order of its chunks."""
    if not any(chunk.num_scored for chunk in chunks):
        return None
    asked: list[Scored] = []
    sampling: list[int] = []
    row = 0
    for chunk in chunks:
        sequence, first = chunk.sequence, chunk.start + 1
        if chunk.num_scored:
            targets = sequence.tokens[first : first + chunk.num_scored]
            rows = range(row, row + chunk.num_scored)
            asked.append(Scored(rows, targets, sequence.sampling.prompt_logprobs))
        row += chunk.num_logits
        sampling += range(row - chunk.num_sampled, row)
    return ScorePlan.of(asked, sampling, device)


def _picks(
    logits: Tensor, plan: SamplingPlan, previous_ids: Tensor | None, scoring: ScorePlan | None
) -> Picks:
    if scoring is None:
        return pick(logits, plan, previous_ids)
    scores = scoring.score(logits)
    return replace(pick(logits[scoring.sampling], plan, previous_ids), scores=scores)


def _feed(
    targets: list[int], sources: list[int], device: torch.device
) -> Callable[[Tensor, Tensor], None]:
    """What copies [sources] of its second argument to [targets] of its first one, on the device."""
    if device.type == "cpu":

        def copy(token_ids: Tensor, previous_ids: Tensor) -> None:
            # Each call of torch would let another thread have the interpreter.
            token_ids.numpy()[targets] = previous_ids.numpy()[sources]

    else:
        to, of = (staged(each, torch.int64, device) for each in (targets, sources))

        def copy(token_ids: Tensor, previous_ids: Tensor) -> None:
            token_ids.index_copy_(0, to, previous_ids[of])

    return copy
