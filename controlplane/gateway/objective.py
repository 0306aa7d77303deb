"""What is left of a request's objective for the first token when it is admitted, and sent down."""

from __future__ import annotations

from chorale.errors import ResourceExhaustedError
from chorale.objective import HasObjective, set_ttft_slo, ttft_slo_s
from chorale.v1 import inference_pb2 as pb

_RETRY_AFTER_S = 1.0


class Objective:
    """Counted from `now_s`, the request's arrival here. Raises: InvalidArgumentError."""

    def __init__(self, request: pb.GenerateRequest, now_s: float) -> None:
        self._slo_s = ttft_slo_s(request)
        self._arrival_s = now_s

    def put_into(self, request: HasObjective, now_s: float, *, has_begun: bool) -> None:
        """Sets what is left for whoever gets `request` now: nothing once the first token was
        delivered (`has_begun`). Raises: ResourceExhaustedError when no time is left."""
        request.ClearField("ttft_slo")
        if self._slo_s is None or has_begun:
            return
        waited_s = now_s - self._arrival_s
        if waited_s >= self._slo_s:
            raise ResourceExhaustedError(
                "TTFT_SLO_MISSED",
                f"ttft_slo of {self._slo_s:g} s was over after {waited_s:.3f} s, before a data "
                "plane took the request; try again later or allow it more time",
                metadata={"ttft_slo_s": f"{self._slo_s:g}", "waited_s": f"{waited_s:.3f}"},
                retry_after_s=_RETRY_AFTER_S,
            )
        set_ttft_slo(request, max(self._slo_s - waited_s, 1e-9))
