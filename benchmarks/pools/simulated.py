"""Simulated time: the real engine, but for the forward pass and loads, which take what they were
measured to take on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dataplane.channel import Adapter
from dataplane.cost_model import CostModel
from dataplane.lora.layout import HostAdapter
from dataplane.lora.loader import LoadResult
from dataplane.models.config import ModelConfig
from storage.loader import Residency


@dataclass(frozen=True)
class Costs:
    """steps: fed with the engine's own observations. load_s: from asking to having an adapter that
    host memory holds. copy_s_per_byte: from there into the pool."""

    steps: CostModel
    load_s: float
    copy_s_per_byte: float

    def step_s(self, num_prefill: int, num_decode: int) -> float:
        """As the engine attributes it: decoding, and what a step with prompt tokens takes more."""
        decode_s = self.steps.step_s(num_decode) if num_decode else 0.0
        return decode_s + self.steps.prefill_s(num_prefill, max(num_prefill, 1))


class SimulatedClock:
    def __init__(self) -> None:
        self._now_s = 1.0
        self.loads: SimulatedLoader | None = None

    def now(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds

    def wait(self, until_s: float) -> None:
        if self.loads is not None and self.loads.next_s is not None:
            until_s = min(until_s, self.loads.next_s)
        self._now_s = max(self._now_s, until_s)


class SimulatedLoader:
    """All adapters are in host memory: each load takes `load_s` beside the steps, and the copy into
    the pool holds the step up."""

    def __init__(
        self, clock: SimulatedClock, costs: Costs, adapters: Mapping[str, HostAdapter]
    ) -> None:
        self._clock = clock
        self._costs = costs
        self._adapters = adapters
        self._residency = Residency(frozenset(adapters), frozenset())
        self._pending: list[tuple[float, str]] = []
        clock.loads = self

    @property
    def next_s(self) -> float | None:
        return min((at_s for at_s, _ in self._pending), default=None)

    @property
    def host_bytes(self) -> int:
        return sum(each.nbytes for each in self._adapters.values())

    def request(
        self, adapter: Adapter, *, priority: float = 0.0, speculative: bool = False
    ) -> None:
        if all(digest != adapter.digest for _, digest in self._pending):
            self._pending.append((self._clock.now() + self._costs.load_s, adapter.digest))

    def cancel(self, digest: str) -> None:
        self._pending = [each for each in self._pending if each[1] != digest]

    def pin(self, digest: str) -> None:
        """Nothing is ever let go of here; nor do the next two."""

    unpin = discard = pin

    def results(self) -> list[LoadResult]:
        now_s = self._clock.now()
        ended = [digest for at_s, digest in self._pending if at_s <= now_s]
        self._pending = [each for each in self._pending if each[0] > now_s]
        results = [LoadResult(digest, self._adapters[digest], None) for digest in ended]
        for result in results:
            assert result.adapter is not None
            self._clock.advance(result.adapter.nbytes * self._costs.copy_s_per_byte)
        return results

    def residency(self) -> Residency:
        return self._residency


class SimulatedDecoder:
    """A forward pass only takes its time; every token is the vocabulary's first."""

    def __init__(self, config: ModelConfig, clock: SimulatedClock, costs: Costs) -> None:
        self.config = config
        self._clock = clock
        self._costs = costs
        self._logits = torch.zeros(1, config.vocab_size)

    def forward(self, batch: Any, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
        num_decode = len(batch.attention.decode_rows)
        num_prefill = len(batch.token_ids) - num_decode
        self._clock.advance(self._costs.step_s(num_prefill, num_decode))
        return self._logits.expand(len(batch.logit_rows), -1)
