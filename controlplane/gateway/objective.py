"""A request's objective for the first token: what is left of it for whoever gets the request."""

from __future__ import annotations

from dataclasses import dataclass, field

from chorale.errors import ResourceExhaustedError
from chorale.objective import (
    MAX_TTFT_SLO_S,
    HasObjective,
    set_ttft_slo,
    ttft_path_s,
    ttft_slo_s,
)
from chorale.path_time import PathTime
from chorale.v1 import inference_pb2 as pb
from chorale.v1.admission_pb2 import AdmitRequest

_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Ways:
    """How long is taken between here and others. admission: by a place; stream: by a request and
    its first token, of what the data plane does not count as its own."""

    admission: PathTime = field(default_factory=PathTime)
    stream: PathTime = field(default_factory=PathTime)


class Objective:
    """Counted from `now_s`, the request's arrival here. Raises: InvalidArgumentError."""

    def __init__(self, request: pb.GenerateRequest, ways: Ways, now_s: float) -> None:
        self._slo_s = ttft_slo_s(request)
        self._path_s = ttft_path_s(request)
        self._ways = ways
        self._arrival_s = now_s

    def put_into(self, request: HasObjective, now_s: float, *, has_begun: bool) -> None:
        """Sets what is left for whoever gets `request` now: nothing once the first token was
        delivered (`has_begun`). Raises: ResourceExhaustedError when no time is left."""
        request.ClearField("ttft_slo")
        request.ClearField("ttft_path_s")
        if has_begun:
            return
        waited_s = now_s - self._arrival_s
        path_s = self._path_s + self._ways.stream.usual_s(now_s)
        if isinstance(request, AdmitRequest):
            path_s += self._ways.admission.usual_s(now_s)
        if self._slo_s is None:  # there may be one where it goes
            request.ttft_path_s = min(waited_s + path_s, MAX_TTFT_SLO_S)
            return
        if waited_s >= self._slo_s:
            raise ResourceExhaustedError(
                "TTFT_SLO_MISSED",
                f"ttft_slo of {self._slo_s:g} s was over after {waited_s:.3f} s, before a data "
                "plane took the request; try again later or allow it more time",
                metadata={"ttft_slo_s": f"{self._slo_s:g}", "waited_s": f"{waited_s:.3f}"},
                retry_after_s=_RETRY_AFTER_S,
            )
        set_ttft_slo(request, max(self._slo_s - waited_s, 1e-9))
        request.ttft_path_s = min(path_s, MAX_TTFT_SLO_S)


class FirstToken:
    """Of one stream that begins now: measures how long its first token was on the way."""

    def __init__(self, way: PathTime, now_s: float) -> None:
        self._way = way
        self._asked_s = now_s
        self._came_s: float | None = None

    def came(self, now_s: float) -> None:
        """Tokens are here; later ones mean nothing."""
        if self._came_s is None:
            self._came_s = now_s

    def ended(self, timings: pb.Timings, now_s: float) -> None:
        """timings: of the data plane, which tell what of that time was spent there."""
        if self._came_s is not None and timings.time_to_first_token_s > 0:
            took_s = self._came_s - self._asked_s - timings.time_to_first_token_s
            self._way.note(took_s, now_s)
