"""Chooses a data plane for a request: a pure function of one snapshot.

Semantics:
    eligible = live, serving the base model, not excluded
    load     = (running + waiting + placed since the report) / max_running
    full     = waiting >= max_queue_factor * max_running
    choice   = least (load - bonus[tier]) among those with a free place; when none has one, among
               those that are not full
A free place goes before residency, so a hot adapter spills to other data planes as soon as those
that hold it are busy; and the load of the choice never exceeds the least load by more than the
largest bonus (bounded-load affinity).
Placements since the report spread a burst, but fill nobody: short requests among them may be done
already. The report tells, and a data plane bounds its own queue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from controlplane.fleet.model import Load


@dataclass(frozen=True, slots=True)
class Candidate:
    """A data plane as the snapshot shows it.

    num_placed: requests placed there that its report does not count yet. tier: "pool", "host",
    "disk" or "" for where it holds the adapter. last_heartbeat_s: on the clock of `now_s`.
    """

    data_plane_id: str
    endpoint: str
    base_model: str
    load: Load
    num_placed: int
    tier: str
    last_heartbeat_s: float


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """bonus: load that residency is worth, by tier; "home" is the one place where an adapter that
    nobody holds is gathered. assumed_max_running: before the first report.
    """

    max_queue_factor: float = 4.0
    assumed_max_running: int = 8
    lease_s: float = 5.0
    bonus: Mapping[str, float] = field(
        default_factory=lambda: {"pool": 0.5, "host": 0.35, "disk": 0.2, "home": 0.1, "": 0.0}
    )


class Refusal(Enum):
    NO_DATA_PLANE = "no live data plane serves the base model"
    ALL_EXCLUDED = "every live data plane that serves the base model is excluded by the request"
    ALL_FULL = "every data plane's queue is full"


def place(
    candidates: Iterable[Candidate],
    *,
    base_model: str,
    digest: str,
    excluded: Collection[str] = (),
    now_s: float,
    policy: PlacementPolicy,
) -> Candidate | Refusal:
    """The candidate to send a request to. The order of `candidates` does not matter.

    digest: of the adapter; "" for the base model, for which residency means nothing.
    """
    serving = [
        candidate
        for candidate in candidates
        if candidate.base_model == base_model
        and now_s - candidate.last_heartbeat_s <= policy.lease_s
    ]
    if not serving:
        return Refusal.NO_DATA_PLANE
    eligible = [candidate for candidate in serving if candidate.data_plane_id not in excluded]
    if not eligible:
        return Refusal.ALL_EXCLUDED
    open_ones = [candidate for candidate in eligible if not is_full(candidate, policy)]
    if not open_ones:
        return Refusal.ALL_FULL
    with_place = [candidate for candidate in open_ones if load_of(candidate, policy) < 1.0]
    pool = with_place or open_ones
    home = min(pool, key=lambda candidate: _rank(digest, candidate)) if digest else None
    return min(
        pool,
        key=lambda candidate: (
            load_of(candidate, policy) - _bonus(candidate, home, policy),
            _rank(digest, candidate),
        ),
    )


def load_of(candidate: Candidate, policy: PlacementPolicy) -> float:
    """Requests there over places; 1.0 and more has no place free."""
    load = candidate.load
    expected = load.num_running + load.num_waiting + candidate.num_placed
    return expected / (load.max_running or policy.assumed_max_running)


def is_full(candidate: Candidate, policy: PlacementPolicy) -> bool:
    load = candidate.load
    max_running = load.max_running or policy.assumed_max_running
    return load.num_waiting >= policy.max_queue_factor * max_running


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
