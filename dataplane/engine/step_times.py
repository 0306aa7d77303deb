"""What steps are expected to take, and what they took: for the cost model and for patience."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dataplane.cost_model import CostModel
from dataplane.engine.chunk import Chunk
from dataplane.engine.device import DeviceTime
from dataplane.engine.patience import Patience


class StepCount(NamedTuple):
    """Of a step, as `CostModel.observe_step` takes it."""

    num_prefill: int
    num_decode: int
    num_drafts: int

    @staticmethod
    def of(chunks: Iterable[Chunk]) -> StepCount:
        sizes: list[int] = []
        num_drafts = 0
        for chunk in chunks:
            sizes.append(chunk.sure_end - chunk.start)
            num_drafts += len(chunk.drafts)
        num_decode = sizes.count(1)
        return StepCount(sum(sizes) - num_decode, num_decode, num_drafts)


class StepTimes:
    """Steps are told in the order in which they were launched."""

    def __init__(self, costs: CostModel, patience: Patience) -> None:
        self._costs = costs
        self._patience = patience
        self._count = StepCount(0, 0, 0)  # of the step that was collected last
        self._seconds = 0.0  # that it took

    def launched(self, chunks: Iterable[Chunk], now_s: float) -> None:
        self._patience.launched(**StepCount.of(chunks)._asdict(), now_s=now_s)

    def collected(self, chunks: Iterable[Chunk], time: DeviceTime, now_s: float) -> None:
        self._patience.collected(now_s)
        before, self._count = self._count, StepCount.of(chunks)
        self._seconds = time.work_s
        if self._count.num_drafts and before.num_drafts:
            # Who drafts is in no step beside: the device waited for the host.
            self._seconds += min(time.idle_s, time.work_s)
        self._costs.observe_step(self._seconds, **self._count._asdict())

    def gave(self, num_tokens: int, num_decoding: int) -> None:
        """The step that was collected last gave these, where so many sequences decode."""
        if num_decoding and not self._count.num_prefill:
            self._costs.observe_gain(self._seconds, num_tokens=num_tokens, num_decode=num_decoding)
