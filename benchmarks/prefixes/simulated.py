"""Conversations over simulated data planes, placed by the control plane's own code."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.placement.plane import PlaneCosts, Served, SimulatedPlane
from benchmarks.prefixes.conversations import Turn
from chorale.outlooks import outlook_to_pb
from chorale.prefixes import prompt_prefixes
from chorale.v1 import admission_pb2, fleet_pb2
from chorale.v1 import inference_pb2 as pb
from controlplane.fleet.model import Load
from controlplane.fleet.outlook import Outlook
from controlplane.placement.expectation import RequestNeeds, SentPrefix
from controlplane.placement.placement import Candidate, Choice, PlacementPolicy, place
from controlplane.rpc.outlook import outlook_from_pb

HEARTBEAT_S = 1.0
_AFTERWARDS_S = 60.0
_POLICY = PlacementPolicy(max_queue_factor=1e9)
_NONE = admission_pb2.PromptPrefixes()


def run(
    turns: Sequence[Turn], costs: PlaneCosts, *, num_planes: int, by_prefixes: bool, after_s: float
) -> dict[str, Any]:
    """Figures of the turns from `after_s` on; those before fill the caches."""
    fleet = _Fleet(costs, num_planes, by_prefixes)
    counted: list[tuple[Turn, Served, str]] = []
    for turn in turns:
        served, name = fleet.admit(turn)
        if turn.at_s >= after_s:
            counted.append((turn, served, name))
    fleet.advance(turns[-1].at_s + _AFTERWARDS_S)
    return _figures(counted, num_planes)


class _Fleet:
    def __init__(self, costs: PlaneCosts, num_planes: int, by_prefixes: bool) -> None:
        self._by_prefixes = by_prefixes
        names = [f"plane-{at}" for at in range(num_planes)]
        self._planes = {name: SimulatedPlane(name, costs, prefix_cache=True) for name in names}
        self._reports: dict[str, tuple[float, Load, Outlook]] = {}
        self._num_placed = dict.fromkeys(names, 0)
        # As in life, heartbeats of several data planes do not fall together.
        self._beats = {name: HEARTBEAT_S * at / num_planes for at, name in enumerate(names)}
        self._sent: dict[str, dict[int, float]] = {name: {} for name in names}

    def advance(self, until_s: float) -> None:
        while True:
            plane = min(self._planes.values(), key=lambda each: each.next_s or float("inf"))
            beating = min(self._beats, key=lambda name: self._beats[name])
            step_s = plane.next_s if plane.next_s is not None else float("inf")
            if min(step_s, self._beats[beating]) > until_s:
                return
            if self._beats[beating] <= step_s:
                self._beat(beating)
            else:
                plane.go_on()

    def admit(self, turn: Turn) -> tuple[Served, str]:
        now_s = turn.at_s
        self.advance(now_s)
        prefixes = _NONE
        if self._by_prefixes:
            ids = pb.TokenIds(ids=turn.prompt)
            prefixes = prompt_prefixes(pb.GenerateRequest(prompt_token_ids=ids)) or _NONE
        choice = place(
            [self._candidate(name, prefixes, now_s) for name in self._planes],
            RequestNeeds(num_tokens=len(turn.prompt), compares_prefixes=bool(prefixes.hashes)),
            base_model="base",
            now_s=now_s,
            policy=_POLICY,
        )
        assert isinstance(choice, Choice)
        name, served = choice.candidate.data_plane_id, Served(now_s)
        self._num_placed[name] += 1
        self._sent[name].update(dict.fromkeys(prefixes.hashes, now_s))
        self._planes[name].submit(served, list(turn.prompt), turn.num_output, "", now_s, 0.0)
        return served, name

    def _beat(self, name: str) -> None:
        now_s, plane = self._beats[name], self._planes[name]
        self._beats[name] += HEARTBEAT_S
        told = plane.scheduler.outlook(now_s)
        message = fleet_pb2.Load(outlook=outlook_to_pb(told) if told else None)
        load = Load(
            num_running=len(plane.scheduler.running),
            num_waiting=plane.scheduler.num_waiting,
            max_running=plane.costs.max_running,
        )
        self._reports[name] = now_s, load, outlook_from_pb(message)
        self._num_placed[name] = 0

    def _candidate(
        self, name: str, prefixes: admission_pb2.PromptPrefixes, now_s: float
    ) -> Candidate:
        at_s, load, outlook = self._reports.get(name, (now_s, Load(), Outlook()))
        return Candidate(
            data_plane_id=name,
            endpoint="",
            base_model="base",
            load=load,
            num_placed=self._num_placed[name],
            tier="",
            last_heartbeat_s=at_s,
            outlook=outlook,
            sent=_sent(prefixes, self._sent[name], now_s),
        )


def _sent(
    prefixes: admission_pb2.PromptPrefixes, times: dict[int, float], now_s: float
) -> tuple[SentPrefix, ...]:
    found: list[SentPrefix] = []
    for prefix_hash, length in zip(
        reversed(prefixes.hashes), reversed(prefixes.lengths), strict=True
    ):
        age_s = now_s - times.get(prefix_hash, float("-inf"))
        if age_s < (found[-1].age_s if found else float("inf")):
            found.append(SentPrefix(length, age_s))
    return tuple(found)


def _figures(counted: Sequence[tuple[Turn, Served, str]], num_planes: int) -> dict[str, Any]:
    first = [each.first_s - each.at_s for _, each, _ in counted if each.first_s is not None]
    num_prompt = sum(len(turn.prompt) for turn, _, _ in counted)
    placed = Counter(name for _, _, name in counted)
    return {
        "num_requests": len(counted),
        "num_served": len(first),
        "cached_share": sum(each.num_cached for _, each, _ in counted) / num_prompt,
        "mean_ttft_s": statistics.fmean(first),
        "p90_ttft_s": statistics.quantiles(first, n=10)[8],
        "busiest_to_even": max(placed.values()) * num_planes / len(counted),
    }
