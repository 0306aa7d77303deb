"""Which adapters to bring where: a pure function of one snapshot.

Semantics:
    candidates   follow   what tends to follow the adapter that a session has just come to
                 warm_up  on a data plane that has just joined: the same, over a longer time, and
                          what others have that have much more to do
                 rate     where requests are sent for it: what is asked for most
    chance       of a use there within the kind's horizon, at least min_chance
    order        chance x seconds that the first user is spared / bytes
    within       the byte budget, a share of the tier for what did not come true yet, and for rate
                 and warm_up what is asked for most of all that fits the tier
Nothing is asked for that is there, pinned, asked for already, or, with a private source, without
the bytes on disk. Where the score of a kind is low, only a part of its candidates is taken.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from controlplane.placement.placement import affinity
from controlplane.prefetch.costs import load_s, tier_bytes
from controlplane.prefetch.model import (
    KINDS,
    Ask,
    Follow,
    Kind,
    Plan,
    Plane,
    PrefetchTier,
    Score,
    Snapshot,
    Wanted,
)
from controlplane.prefetch.policy import PrefetchPolicy
from controlplane.prefetch.restraint import allowance, is_drawn

_NEARNESS = {"pool": 0, "host": 1, "disk": 2, "": 2}


@dataclass(frozen=True, slots=True)
class _Candidate:
    ask: Ask
    plane: Plane
    value: float


def plan(snapshot: Snapshot, policy: PrefetchPolicy) -> Plan:
    """Directives for the time until the next tick, the most valuable first."""
    serving = {
        base: [plane for plane in snapshot.planes if plane.base_model == base]
        for base in {plane.base_model for plane in snapshot.planes}
    }
    known = {(each.data_plane_id, each.identity) for each in snapshot.open}
    shares = {kind: allowance(snapshot.scores.get(kind, Score()), policy) for kind in KINDS}
    best: dict[tuple[str, str], _Candidate] = {}
    for candidate in _candidates(snapshot, serving, policy):
        ask, key = candidate.ask, (candidate.plane.data_plane_id, candidate.ask.wanted.identity)
        period = int(snapshot.now_s / ask.horizon_s)
        if key in known or not is_drawn(shares[ask.kind], ask.kind, *key, period):
            continue
        if key not in best or candidate.value > best[key].value:
            best[key] = candidate
    return _within_budget(best, snapshot, policy)


def destinations(
    wanted: Wanted, serving: Sequence[Plane], total_rate: float, policy: PrefetchPolicy
) -> list[Plane]:
    """Where requests for it are sent, in the order in which placement takes data planes: those with
    a place free, those that have it, then by affinity; as many as its requests need."""
    ordered = sorted(
        serving,
        key=lambda plane: (
            _load(plane) >= 1.0,
            _NEARNESS[plane.held.get(wanted.identity, "")],
            affinity(wanted.digest, plane.data_plane_id),
        ),
    )
    return ordered[: _num_replicas(wanted, serving, total_rate, policy)]


def _num_replicas(
    wanted: Wanted, serving: Sequence[Plane], total_rate: float, policy: PrefetchPolicy
) -> int:
    """By its share of what the data planes have to do: a request's rate times its duration, without
    anybody measuring durations."""
    if not serving or total_rate <= 0:
        return 1
    num_there = sum(map(_num_there, serving)) * min(1.0, wanted.rate / total_rate)
    places = sum(plane.load.max_running for plane in serving) / len(serving)
    needed = math.ceil(num_there / max(places * policy.busy_share, 1.0))
    return min(max(needed, 1), len(serving))


def _candidates(
    snapshot: Snapshot, serving: Mapping[str, list[Plane]], policy: PrefetchPolicy
) -> Iterator[_Candidate]:
    for follow in snapshot.follows:
        wanted = snapshot.wanted.get(follow.identity)
        if wanted is not None:
            horizon_s = policy.horizon_of("follow", snapshot.gap_s)
            planes = serving.get(wanted.base_model, [])
            yield from _following(follow, wanted, planes, horizon_s, policy)
    sent: dict[str, dict[str, Wanted]] = {each.data_plane_id: {} for each in snapshot.planes}
    for wanted in snapshot.wanted.values():
        planes = serving.get(wanted.base_model, [])
        if wanted.idle_s < policy.loading_s and not _holders(wanted, planes):
            continue  # the request brings it
        total = snapshot.total_rate.get(wanted.base_model, 0.0)
        for plane in destinations(wanted, planes, total, policy):
            sent[plane.data_plane_id][wanted.identity] = wanted
    for plane in snapshot.planes:
        here = sent[plane.data_plane_id]
        yield from _most_asked_for("rate", plane, here.values(), policy)
        if plane.age_s is not None and plane.age_s <= policy.warm_s:
            others = serving[plane.base_model]
            come = [
                wanted
                for wanted in snapshot.wanted.values()
                if wanted.identity in here or _spills(wanted, plane, others, policy)
            ]
            yield from _most_asked_for("warm_up", plane, come, policy)


def _spills(wanted: Wanted, plane: Plane, serving: Sequence[Plane], policy: PrefetchPolicy) -> bool:
    """Whether requests for it come here although others have it in memory: they have too much to
    do. Where they have not, a second copy would only take the room of another adapter."""
    if wanted.base_model != plane.base_model:
        return False
    holders = _holders(wanted, serving)
    least = _load(plane) + policy.spill_load
    return bool(holders) and all(_load(each) >= least for each in holders)


def _holders(wanted: Wanted, serving: Sequence[Plane]) -> list[Plane]:
    return [each for each in serving if each.held.get(wanted.identity) in ("pool", "host")]


def _following(
    follow: Follow,
    wanted: Wanted,
    serving: Sequence[Plane],
    horizon_s: float,
    policy: PrefetchPolicy,
) -> Iterator[_Candidate]:
    chance = follow.share * follow.num_visits / (follow.num_visits + policy.doubt_visits)
    tier: PrefetchTier = "pool" if chance >= policy.pool_chance else "host"
    for plane in destinations(wanted, serving, 0.0, policy):
        yield from _candidate("follow", plane, wanted, tier, chance, horizon_s, policy)


def _most_asked_for(
    kind: Kind, plane: Plane, wanted: Iterable[Wanted], policy: PrefetchPolicy
) -> Iterator[_Candidate]:
    """Of all that fits; what is there takes its room, too."""
    horizon_s = policy.horizon_s[kind]
    room = policy.fill_share * tier_bytes(plane.counters, "host")
    for each in sorted(wanted, key=lambda each: (-each.rate / max(each.size_bytes, 1), each.name)):
        room -= each.size_bytes
        if room < 0:
            return
        chance = -math.expm1(-each.rate * horizon_s)
        yield from _candidate(kind, plane, each, "host", chance, horizon_s, policy)


def _candidate(
    kind: Kind,
    plane: Plane,
    wanted: Wanted,
    tier: PrefetchTier,
    chance: float,
    horizon_s: float,
    policy: PrefetchPolicy,
) -> Iterator[_Candidate]:
    """One or none."""
    held = plane.held.get(wanted.identity, "")
    there = held == "pool" or (held == "host" and tier == "host")
    if there or wanted.pinned or (wanted.private and not held) or chance < policy.min_chance[kind]:
        return
    saved_s = load_s(plane.counters, held, wanted.source, wanted.size_bytes)
    ask = Ask(plane.data_plane_id, wanted, kind, tier, chance, horizon_s)
    yield _Candidate(ask, plane, chance * saved_s / max(wanted.size_bytes, 1))


def _within_budget(
    candidates: Mapping[tuple[str, str], _Candidate], snapshot: Snapshot, policy: PrefetchPolicy
) -> Plan:
    """The most valuable of each data plane. One adapter may be more than a second's budget: its
    debt then keeps the next ones waiting."""
    debts = {plane.data_plane_id: plane.debt_bytes for plane in snapshot.planes}
    num_asks: Counter[str] = Counter()
    unused: Counter[tuple[str, str]] = Counter()
    for each in snapshot.open:
        if each.state == "open":
            for tier in _takes(each.tier):
                unused[each.data_plane_id, tier] += each.size_bytes
    asks: list[Ask] = []
    for each in sorted(candidates.values(), key=_order):
        ask, size_bytes, name = each.ask, each.ask.wanted.size_bytes, each.plane.data_plane_id
        counters, tiers = each.plane.counters, _takes(each.ask.tier)
        fits = all(
            unused[name, tier] + size_bytes <= policy.tier_share * tier_bytes(counters, tier)
            for tier in tiers
        )
        affordable = debts[name] <= 0 or debts[name] + size_bytes <= policy.budget_bytes_per_s
        busy = num_asks[name] >= policy.max_asks or counters.num_loading >= policy.max_loading
        if not fits or not affordable or busy:
            continue
        debts[name] = max(debts[name], 0.0) + size_bytes
        num_asks[name] += 1
        unused.update({(name, tier): size_bytes for tier in tiers})
        asks.append(ask)
    return Plan(asks, debts)


def _takes(tier: str) -> tuple[str, ...]:
    return ("host", "pool") if tier == "pool" else (tier,)


def _order(candidate: _Candidate) -> tuple[float, str, str]:
    return -candidate.value, candidate.ask.wanted.identity, candidate.ask.data_plane_id


def _num_there(plane: Plane) -> int:
    return plane.load.num_running + plane.load.num_waiting + plane.num_placed


def _load(plane: Plane) -> float:
    """Requests there over places."""
    return _num_there(plane) / max(plane.load.max_running, 1)
