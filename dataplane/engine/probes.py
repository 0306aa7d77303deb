"""When an estimate that refuses work is put to the test.

What refuses everybody is never measured again: one stalled step, or one source that was slow for a
while, and nobody would ever get in any more. So while an estimate fails requests and nothing
measures it, one of them is let through now and then, as a circuit breaker does that is half open,
and what is measured then replaces what was thought before.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.cost_model import Cost, CostModel

INTERVAL_S = 5.0


@dataclass
class _Doubt:
    num_observed: int
    since_s: float


class Probes:
    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self._doubts: dict[Cost, _Doubt] = {}

    def may_try(self, cost: Cost, now_s: float) -> bool:
        """A request is about to be failed because of this cost. True when it is to run instead: the
        cost was not measured for `INTERVAL_S` of such failures, nor put to the test."""
        doubt = self._doubts.get(cost)
        num_observed = self._costs.num_observed[cost]
        if doubt is None or doubt.num_observed != num_observed:
            self._doubts[cost] = _Doubt(num_observed, now_s)
            return False
        if now_s - doubt.since_s < INTERVAL_S:
            return False
        doubt.since_s = now_s
        self._costs.doubt(cost)
        return True
