"""Steps in flight: given to the device, not read yet.

A step's forward pass takes the tokens that the step before it sampled straight from the device, so
it can be launched before anybody has seen them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from dataplane.engine.chunk import Chunk
from dataplane.engine.device import Device, DeviceTime, Launched
from dataplane.engine.graphs import GraphStep
from dataplane.engine.sequence import Sequence
from dataplane.models.decoder import Batch, Decoder
from dataplane.pool.pool import PagePool
from dataplane.sampling.plan import Row, SamplingPlan
from dataplane.sampling.sampler import Picks, Sampled, pick
from kernels.gpu.staging import staged

DEPTH = 2
"""One step runs, and the next one is launched behind it. 1: nothing overlaps. More would gain
nothing: the device never waits for the second one to be scheduled."""


@dataclass(frozen=True)
class Collected:
    """A step that has run. sampled: of the chunks that sample, in their order."""

    chunks: Seq[Chunk]
    sampled: Seq[Sampled]
    time: DeviceTime


@dataclass(frozen=True)
class _Flight:
    chunks: Seq[Chunk]
    rows: dict[Sequence, int]  # where its token is among the sampled ones
    launched: Launched[Picks]


class Pipeline:
    """At most `depth` steps, 1 or 2. Not thread-safe."""

    def __init__(self, decoder: Decoder, pool: PagePool, device: Device, depth: int) -> None:
        assert 1 <= depth <= DEPTH
        self._decoder = decoder
        self._pool = pool
        self._device = device
        self._depth = depth
        self._flights: deque[_Flight] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def is_full(self) -> bool:
        return len(self._flights) >= self._depth

    @property
    def is_idle(self) -> bool:
        """The device has run all that was launched."""
        return not self._flights or self._flights[-1].launched.is_done()

    def unread_row(self, sequence: Sequence) -> int:
        """Where the token is that the sequence got on the device, among those of the newest step;
        -1 when all its tokens are known."""
        if not sequence.num_unread:
            return -1
        assert sequence.num_unread == 1
        return self._flights[-1].rows[sequence]

    def launch(self, chunks: Seq[Chunk], step: Batch | GraphStep, rows: Seq[Row]) -> None:
        """step: of `chunks`; a batch, with any token where one is unread, or a graph that knows
        where unread ones are. rows: of those that sample."""
        assert not self.is_full
        device = self._pool.device
        plan = SamplingPlan.of(rows, device)
        before = self._flights[-1].launched if self._flights else None
        forward = step.run if isinstance(step, GraphStep) else self._eager(chunks, step)

        def work() -> Picks:
            previous = before.result.ids if before else None
            with torch.inference_mode():
                return pick(forward(previous), plan, previous)

        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        self._flights.append(
            _Flight(
                chunks,
                {sequence: row for row, sequence in enumerate(sampling)},
                self._device.launch(work),
            )
        )

    def collect(self) -> Collected:
        """Waits for the oldest step. Raises: what it raised."""
        flight = self._flights.popleft()
        picks, time = flight.launched.wait()
        return Collected(flight.chunks, picks.read(), time)

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
                assert chunk.num_tokens == 1
                targets.append(start)
                sources.append(source)
            start += chunk.num_tokens
        return targets, sources


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
