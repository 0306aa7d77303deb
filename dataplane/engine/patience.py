"""How long the next step can be put off.

Whoever comes before a step is scheduled can be part of it. So it is scheduled as late as it can be
without the device ever waiting for it: shortly before the step ahead of it ends, by what such steps
took and by what scheduling takes.
"""

from __future__ import annotations

from dataplane.cost_model import CostModel

_KEEP = 0.9  # weight of the past
_SAFETY = 2.0  # times what the host usually takes
_MARGIN_S = 1e-3


class Patience:
    """Steps in flight are told in order; clock readings are passed in."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self._host_s = 0.0
        self._begun_s = 0.0
        self._expected_s: list[float] = []  # of the steps in flight, oldest first

    def host_took(self, seconds: float) -> None:
        """Scheduling, building and launching one step."""
        self._host_s = _KEEP * self._host_s + (1.0 - _KEEP) * seconds if self._host_s else seconds

    def launched(
        self, *, num_prefill: int, num_decode: int, now_s: float, num_drafts: int = 0
    ) -> None:
        if not self._expected_s:
            self._begun_s = now_s
        decode_s = self._costs.step_s(num_decode) if num_decode else 0.0
        prefill_s = self._costs.prefill_s(num_prefill, num_prefill) if num_prefill else 0.0
        drafts_s = self._costs.drafts_s(num_drafts) if num_drafts else 0.0
        self._expected_s.append(decode_s + prefill_s + drafts_s)

    def collected(self, now_s: float) -> None:
        del self._expected_s[0]
        self._begun_s = now_s

    def left_s(self, now_s: float) -> float:
        """Until the next step is to be scheduled; 0 when that is now."""
        end_s = self._begun_s + sum(self._expected_s)
        return max(0.0, end_s - _SAFETY * self._host_s - _MARGIN_S - now_s)
