"""Ends requests whose time is over, and waiting ones whose objective is out of reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataplane.cost_model import CostModel
from dataplane.engine.chunk import Failure
from dataplane.engine.counters import Counters
from dataplane.engine.objectives import Objectives, deadline_error, hopeless_error
from dataplane.engine.prefix_cache import PrefixCache
from dataplane.engine.probes import Probes
from dataplane.engine.sequence import Sequence
from dataplane.engine.waiting import Waiting
from dataplane.errors import DataPlaneError

if TYPE_CHECKING:
    from dataplane.lora.supply import AdapterSupply

_OVERLOAD_S = 5.0  # there is overload for so long after a request was failed as hopeless
_MAX_RETRY_S = 30.0


class Triage:
    """Watches who waits, and finds failures; whoever asks for these removes the sequences."""

    def __init__(
        self,
        supply: AdapterSupply,
        prefixes: PrefixCache,
        costs: CostModel,
        waiting: Waiting,
        counters: Counters,
        *,
        page_tokens: int,
        max_batch_tokens: int,
    ) -> None:
        self._supply = supply
        self._prefixes = prefixes
        self._costs = costs
        self._waiting = waiting
        self._counters = counters
        self._page_tokens = page_tokens
        self._max_batch_tokens = max_batch_tokens
        self._probes = Probes(costs)
        self._overload_until_s: float | None = None
        self.objectives = Objectives(costs, max_batch_tokens)

    def is_overload(self, now_s: float) -> bool:
        """A request was hopeless a moment ago."""
        return self._overload_until_s is not None and now_s < self._overload_until_s

    def watch(self, sequence: Sequence, now_s: float) -> None:
        """It waits, and ends by `out_of_time` when it must."""
        if sequence.has_objective:
            num_cached = self._num_cached(sequence)
            self.objectives.wait(sequence, self._ready_in_s(sequence, now_s), num_cached)

    def out_of_time(self, now_s: float) -> list[Failure]:
        """Those that end now, waiting or running."""
        failures: list[Failure] = []
        for sequence in self.objectives.due(now_s):
            if sequence.deadline_s is not None and sequence.deadline_s <= now_s:
                failures.append(Failure(sequence, deadline_error(sequence, now_s)))
            elif error := self.hopeless(sequence, now_s, self._num_cached(sequence)):
                failures.append(Failure(sequence, error))
            else:
                self.watch(sequence, now_s)
        return failures

    def hopeless(self, sequence: Sequence, now_s: float, num_cached: int) -> DataPlaneError | None:
        """Why it is not to begin; None: it may. num_cached: tokens that need no computing."""
        if not sequence.has_objective:
            return None
        ready_in_s = self._ready_in_s(sequence, now_s)
        if not self.objectives.is_hopeless(sequence, now_s, ready_in_s, num_cached):
            return None
        if self._may_probe(sequence, now_s, ready_in_s, num_cached):
            sequence.is_probe = True
            return None
        self._counters.num_hopeless += 1
        self._overload_until_s = now_s + _OVERLOAD_S
        backlog_s = self._costs.prefill_s(self._waiting.num_tokens, self._max_batch_tokens)
        retry_after_s = min(max(backlog_s, 1.0), _MAX_RETRY_S)
        return hopeless_error(sequence, now_s, ready_in_s, retry_after_s)

    def _may_probe(
        self, sequence: Sequence, now_s: float, ready_in_s: float, num_cached: int
    ) -> bool:
        if sequence.is_probe or self.objectives.is_over(sequence, now_s):
            return False
        load = (self._supply.tier(sequence.queue_key), ready_in_s) if ready_in_s else None
        dearest = self.objectives.dearest(sequence, load, num_cached)
        return self._probes.may_try(dearest, now_s)

    def _ready_in_s(self, sequence: Sequence, now_s: float) -> float:
        if sequence.adapter is None:
            return 0.0
        return self._supply.ready_in_s(sequence.adapter.digest, now_s)

    def _num_cached(self, sequence: Sequence) -> int:
        return len(sequence.computed_in(self._prefixes)) * self._page_tokens
