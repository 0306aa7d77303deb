"""Chooses a data plane for a request: a pure function of one snapshot.

Semantics:
    eligible = live, serving the base model, not excluded
    load     = (running + waiting + placed since the report) / max_running
    full     = waiting >= max_queue_factor * max_running
    in reach = where the queue leaves time for the objective, if the request has one there
    choice   = least (expected first token + crowding * (load - bonus[tier])) among those that are
               not full and in reach, where the first token is expected in time if that is anywhere
`expectation` says when a first token is expected. Residency counts twice: in what a load takes, and
as a bonus, which gathers the requests of an adapter and bounds by how much more load they may find
there (bounded-load affinity): a hot adapter spills to other data planes, a cold one has one home.
Placements since the report spread a burst. They fill nobody: short requests among them may be done
already.

While one of the eligible has not measured what a step takes, loads are compared instead: a free
place goes before residency, and the choice is least (load - bonus[tier]).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from controlplane.fleet.model import Load
from controlplane.fleet.outlook import Outlook
from controlplane.placement.expectation import Expectation, RequestNeeds, SentPrefix, expected


@dataclass(frozen=True, slots=True)
class Candidate:
    """A data plane as the snapshot shows it.

    num_placed: requests placed there that its report does not count yet; what may have been placed
    there counts in part. tier: "pool", "host", "disk" or "" for where it holds the adapter. sent:
    beginnings of the prompt, the longest first, each sent later than the one before.
    last_heartbeat_s: on the clock of `now_s`.
    """

    data_plane_id: str
    endpoint: str
    base_model: str
    load: Load
    num_placed: float
    tier: str
    last_heartbeat_s: float
    outlook: Outlook = field(default_factory=Outlook)
    sent: Sequence[SentPrefix] = ()


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """bonus: load that residency is worth, by tier; "home" is the one place where an adapter that
    nobody holds is gathered. crowding: steps by which the first token may come later where the
    load is less by 1. assumed_max_running: before the first report.
    """

    max_queue_factor: float = 4.0
    assumed_max_running: int = 8
    lease_s: float = 5.0
    crowding: float = 30.0
    bonus: Mapping[str, float] = field(
        default_factory=lambda: {"pool": 0.5, "host": 0.35, "disk": 0.2, "home": 0.1, "": 0.0}
    )


class Why(Enum):
    NO_DATA_PLANE = "no live data plane serves the base model"
    ALL_EXCLUDED = "every live data plane that serves the base model is excluded by the request"
    ALL_FULL = "every data plane's queue is full"
    OUT_OF_REACH = "every data plane's queue is too long for the objective"


class Refusal(NamedTuple):
    """expected_s, slo_s: of OUT_OF_REACH, where it misses by the least."""

    why: Why
    expected_s: float = 0.0
    slo_s: float = 0.0


class Choice(NamedTuple):
    """expected_s: until the first token; None where the data plane has not measured enough.
    num_cached: tokens of the prompt that are expected to be cached there; most_cached: anywhere
    that it could have been placed. None where prefixes were not compared."""

    candidate: Candidate
    expected_s: float | None
    num_cached: float | None = None
    most_cached: float | None = None


def place(
    candidates: Iterable[Candidate],
    needs: RequestNeeds,
    *,
    base_model: str,
    excluded: Collection[str] = (),
    now_s: float,
    policy: PlacementPolicy,
) -> Choice | Refusal:
    """Where to send a request. The order of `candidates` does not matter."""
    serving = [
        candidate
        for candidate in candidates
        if candidate.base_model == base_model
        and now_s - candidate.last_heartbeat_s <= policy.lease_s
    ]
    if not serving:
        return Refusal(Why.NO_DATA_PLANE)
    eligible = [candidate for candidate in serving if candidate.data_plane_id not in excluded]
    if not eligible:
        return Refusal(Why.ALL_EXCLUDED)
    open_ones = [candidate for candidate in eligible if not is_full(candidate, policy)]
    if not open_ones:
        return Refusal(Why.ALL_FULL)
    if needs.compares_prefixes and any(each.outlook.cached_for_s is None for each in open_ones):
        # Between those that tell and those that do not, the usual share is the common measure.
        needs = replace(needs, compares_prefixes=False)
    prospects = [_Prospect(each, needs, now_s) for each in open_ones]
    in_reach = [each for each in prospects if not each.is_queued_out]
    if not in_reach:
        nearest = min(prospects, key=lambda each: each.misses_by_s)
        return Refusal(Why.OUT_OF_REACH, nearest.ttft_s, nearest.slo_s or 0.0)
    if all(each.is_known for each in in_reach):
        choice = _soonest(in_reach, needs.digest, policy)
        if not needs.compares_prefixes:
            return choice
        most_cached = max(each.expectation.num_cached for each in in_reach)
        return choice._replace(most_cached=most_cached)
    return _least_loaded(in_reach, needs.digest, policy)


def load_of(candidate: Candidate, policy: PlacementPolicy) -> float:
    """Requests there over places; 1.0 and more has no place free."""
    load = candidate.load
    waiting = load.num_running + load.num_waiting + candidate.num_placed
    return waiting / (load.max_running or policy.assumed_max_running)


def is_full(candidate: Candidate, policy: PlacementPolicy) -> bool:
    load = candidate.load
    max_running = load.max_running or policy.assumed_max_running
    return load.num_waiting >= policy.max_queue_factor * max_running


class _Prospect:
    """A candidate, and what a request could expect there."""

    def __init__(self, candidate: Candidate, needs: RequestNeeds, now_s: float) -> None:
        outlook = candidate.outlook
        self.candidate = candidate
        self.is_known = outlook.is_measured
        self.slo_s = needs.slo_s_on(outlook)
        self._path_s = needs.ttft_path_s
        self.expectation: Expectation = expected(
            outlook,
            needs,
            tier=candidate.tier,
            num_running=candidate.load.num_running,
            num_placed=candidate.num_placed,
            since_s=now_s - candidate.last_heartbeat_s,
            sent=candidate.sent,
        )
        self.num_cached = self.expectation.num_cached if needs.compares_prefixes else None

    @property
    def is_queued_out(self) -> bool:
        """Never where nothing was measured, as nothing costs anything then."""
        return self.slo_s is not None and self.expectation.is_queued_out(self.slo_s - self._path_s)

    @property
    def ttft_s(self) -> float:
        """Until whoever asks for a place has the first token."""
        return self.expectation.ttft_s + self._path_s

    @property
    def misses_by_s(self) -> float:
        return self.ttft_s - (self.slo_s or 0.0)

    @property
    def choice(self) -> Choice:
        if not self.is_known:
            return Choice(self.candidate, None)
        return Choice(self.candidate, self.expectation.ttft_s, self.num_cached)


def _soonest(prospects: Sequence[_Prospect], digest: str, policy: PlacementPolicy) -> Choice:
    in_time = [each for each in prospects if each.slo_s is None or each.misses_by_s <= 0]
    pool = in_time or prospects
    home = _home([each.candidate for each in pool], digest)
    steps_s = [each.candidate.outlook.decode_step_s for each in pool]
    crowding_s = policy.crowding * max(steps_s)

    def cost_s(each: _Prospect) -> float:
        load = load_of(each.candidate, policy) - _bonus(each.candidate, home, policy)
        return each.expectation.ttft_s + crowding_s * load

    best = min(pool, key=lambda each: (cost_s(each), _rank(digest, each.candidate)))
    return best.choice


def _least_loaded(prospects: Sequence[_Prospect], digest: str, policy: PlacementPolicy) -> Choice:
    with_place = [each for each in prospects if load_of(each.candidate, policy) < 1.0]
    pool = with_place or prospects
    home = _home([each.candidate for each in pool], digest)

    def cost(each: _Prospect) -> float:
        return load_of(each.candidate, policy) - _bonus(each.candidate, home, policy)

    return min(pool, key=lambda each: (cost(each), _rank(digest, each.candidate))).choice


def _home(candidates: Sequence[Candidate], digest: str) -> Candidate | None:
    return min(candidates, key=lambda each: _rank(digest, each)) if digest else None


def _bonus(candidate: Candidate, home: Candidate | None, policy: PlacementPolicy) -> float:
    if home is None:
        return 0.0
    return policy.bonus[candidate.tier or ("home" if candidate is home else "")]


def _rank(digest: str, candidate: Candidate) -> bytes:
    return affinity(digest, candidate.data_plane_id)


def affinity(digest: str, data_plane_id: str) -> bytes:
    """The least is the data plane where an adapter is at home."""
    # Rendezvous hashing: a data plane that comes or goes moves only its own adapters.
    text = f"{digest}\0{data_plane_id}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
