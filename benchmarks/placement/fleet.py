"""Simulated data planes behind the control plane's own placement, over one workload."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.load import generators
from benchmarks.load.workload import Request
from benchmarks.placement.plane import PlaneCosts, Served, SimulatedPlane
from chorale.outlooks import outlook_to_pb
from chorale.v1 import fleet_pb2
from controlplane.fleet.model import Load
from controlplane.fleet.outlook import Outlook
from controlplane.placement.expectation import RequestNeeds
from controlplane.placement.placement import Candidate, Choice, PlacementPolicy, place
from controlplane.rpc.outlook import outlook_from_pb

HEARTBEAT_S = 1.0
_BASE = "base"
_AFTERWARDS_S = 60.0
_MEASURED_S = 60.0
_FLOOD_RATE = 20.0


@dataclass(frozen=True)
class Mode:
    """plane_slo: data planes end what cannot make it any more. admission: the control plane refuses
    what the queues leave no time for. foresight: placement by expected first tokens; else by load.
    """

    name: str
    plane_slo: bool = False
    admission: bool = False
    foresight: bool = False


def run(
    mode: Mode,
    requests: Sequence[Request],
    costs: PlaneCosts,
    *,
    num_planes: int,
    slo_s: float,
    policy: PlacementPolicy,
    warm: Sequence[Request] = (),
) -> dict[str, Any]:
    """Figures of `requests`; `warm` are sent before, and not counted."""
    fleet = _Fleet(mode, costs, num_planes, slo_s, policy)
    fleet.run(warm)
    return _figures(fleet.run(requests), slo_s)


def capacity(costs: PlaneCosts) -> float:
    """S-LoRA's requests per second that one data plane does under a queue that never ends."""
    workload = generators.slora([], rate=_FLOOD_RATE, duration_s=2 * _MEASURED_S, seed=9)
    policy = PlacementPolicy(max_queue_factor=1e9)
    served = _Fleet(Mode("flood"), costs, 1, 0.0, policy).run(workload.phases[0].requests)
    begun = sum(_MEASURED_S < (each.first_s or 0.0) <= 2 * _MEASURED_S for each in served)
    return begun / _MEASURED_S


class _Fleet:
    def __init__(
        self, mode: Mode, costs: PlaneCosts, num_planes: int, slo_s: float, policy: PlacementPolicy
    ) -> None:
        self._mode = mode
        self._now_s = 0.0
        self._slo_s = slo_s
        self._policy = policy
        self._planes = [SimulatedPlane(f"plane-{at}", costs) for at in range(num_planes)]
        self._reports: dict[str, tuple[float, Load, Outlook]] = {}
        self._num_placed = dict.fromkeys((each.name for each in self._planes), 0)
        # As in life, heartbeats of several data planes do not fall together.
        self._beats = {
            each.name: HEARTBEAT_S * at / num_planes for at, each in enumerate(self._planes)
        }

    def run(self, requests: Sequence[Request]) -> list[Served]:
        """Until the last of them has its first token, or will have none."""
        began_s = self._now_s
        served: list[Served] = []
        for request in requests:
            at_s = began_s + (request.at_s or 0.0)
            self._advance(at_s)
            served.append(Served(at_s))
            self._admit(request, served[-1], at_s)
        if served:
            self._advance(served[-1].at_s + _AFTERWARDS_S)
        return served

    def _advance(self, until_s: float) -> None:
        self._now_s = until_s
        while True:
            plane = min(self._planes, key=lambda each: each.next_s or float("inf"))
            beating = min(self._beats, key=lambda each: self._beats[each])
            step_s = plane.next_s if plane.next_s is not None else float("inf")
            if min(step_s, self._beats[beating]) > until_s:
                return
            if self._beats[beating] <= step_s:
                self._beat(next(each for each in self._planes if each.name == beating))
            else:
                plane.go_on()

    def _beat(self, plane: SimulatedPlane) -> None:
        now_s = self._beats[plane.name]
        self._beats[plane.name] += HEARTBEAT_S
        scheduler = plane.scheduler
        load = Load(
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting,
            max_running=plane.costs.max_running,
            num_pages=plane.costs.num_pages,
            num_available_pages=plane.num_available_pages,
        )
        told = scheduler.outlook(now_s)
        message = fleet_pb2.Load(outlook=outlook_to_pb(told) if told else None)
        outlook = outlook_from_pb(message) if self._mode.foresight else Outlook()
        self._reports[plane.name] = now_s, load, outlook
        self._num_placed[plane.name] = 0

    def _admit(self, request: Request, served: Served, now_s: float) -> None:
        mode = self._mode
        needs = RequestNeeds(
            digest=request.adapter,
            weights_bytes=1,
            num_tokens=request.num_prompt_tokens,
            ttft_slo_s=self._slo_s if mode.admission else None,
        )
        choice = place(
            [self._candidate(each, request.adapter, now_s) for each in self._planes],
            needs,
            base_model=_BASE,
            now_s=now_s,
            policy=self._policy,
        )
        if not isinstance(choice, Choice):
            served.told_no_s = now_s
            return
        name = choice.candidate.data_plane_id
        self._num_placed[name] += 1
        served.expected_s = choice.expected_s
        plane = next(each for each in self._planes if each.name == name)
        plane.submit(
            served,
            [0] * request.num_prompt_tokens,
            request.num_output_tokens,
            request.adapter,
            now_s,
            self._slo_s if mode.plane_slo else 0.0,
        )

    def _candidate(self, plane: SimulatedPlane, adapter: str, now_s: float) -> Candidate:
        at_s, load, outlook = self._reports.get(plane.name, (now_s, Load(), Outlook()))
        return Candidate(
            data_plane_id=plane.name,
            endpoint="",
            base_model=_BASE,
            load=load,
            num_placed=self._num_placed[plane.name],
            tier=plane.tier(adapter) if adapter else "",
            last_heartbeat_s=at_s,
            outlook=outlook,
        )


def _figures(served: Sequence[Served], slo_s: float) -> dict[str, Any]:
    """Seconds of first tokens, and shares; None where there is nothing to tell."""
    first = [each.first_s - each.at_s for each in served if each.first_s is not None]
    told_no = [each.told_no_s - each.at_s for each in served if each.told_no_s is not None]
    in_time = sum(each <= slo_s for each in first)
    ratios = [
        each.expected_s / (each.first_s - each.at_s)
        for each in served
        if each.first_s is not None and each.expected_s is not None
    ]
    return {
        "num_requests": len(served),
        "num_served": len(first),
        "attainment": in_time / len(served),
        "late_share_of_served": 1 - in_time / len(first) if first else None,
        "told_no_after_s": statistics.fmean(told_no) if told_no else None,
        "mean_ttft_s": statistics.fmean(first) if first else None,
        "median_ttft_s": statistics.median(first) if first else None,
        "p90_ttft_s": statistics.quantiles(first, n=10)[8] if len(first) > 1 else None,
        "expected_over_true": _spread(ratios),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if len(values) < 2:
        return None
    deciles = statistics.quantiles(values, n=10)
    return {"p10": deciles[0], "median": statistics.median(values), "p90": deciles[8]}
