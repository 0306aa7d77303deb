"""What is predicted from: one snapshot of demand and fleet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from controlplane.fleet.counters import Counters
from controlplane.fleet.model import Load

Kind = Literal["follow", "warm_up", "rate"]
KINDS: tuple[Kind, ...] = ("follow", "warm_up", "rate")
PrefetchTier = Literal["host", "pool"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An adapter that is asked for. identity: `digest:base_model`. rate: expected requests per
    second. idle_s: since it was asked for last. pinned: an operator sees to it."""

    identity: str
    digest: str
    base_model: str
    name: str
    source: str
    size_bytes: int
    rate: float = 0.0
    idle_s: float = math.inf
    private: bool = False
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Follow:
    """A session came to an adapter that `identity` follows, in `share` of `num_visits`."""

    identity: str
    share: float
    num_visits: float


@dataclass(frozen=True, slots=True)
class Plane:
    """A live data plane. held: identity -> "pool", "host" or "disk". age_s: since it joined; None
    when that is not known. debt_bytes: asked for beyond its budget as of now."""

    data_plane_id: str
    base_model: str
    load: Load
    counters: Counters
    held: Mapping[str, str]
    num_placed: int = 0
    age_s: float | None = None
    debt_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Open:
    """A prediction whose time is not over; `state`: "open", "hit", or "held_off", which is none."""

    data_plane_id: str
    identity: str
    state: str
    tier: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """Of one kind. hits: the adapter was there when a request came for it within the time; late:
    not yet, or not any more; misses: none came. recent: all three, recent_hits: hits, older ones
    fading.
    """

    num_made: int = 0
    num_hits: int = 0
    num_late: int = 0
    num_misses: int = 0
    asked_bytes: int = 0
    recent: float = 0.0
    recent_hits: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """now_s: on the demand clock. total_rate: requests per second by base model, with and without
    adapters. gap_s: between two visits of a session, on the average; None before there were any."""

    now_s: float
    wanted: Mapping[str, Wanted]
    follows: Sequence[Follow]
    planes: Sequence[Plane]
    open: Sequence[Open] = ()
    total_rate: Mapping[str, float] = field(default_factory=dict[str, float])
    scores: Mapping[Kind, Score] = field(default_factory=dict[Kind, Score])
    gap_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One prediction: that the adapter is asked for on that data plane within horizon_s."""

    data_plane_id: str
    wanted: Wanted
    kind: Kind
    tier: PrefetchTier
    chance: float
    horizon_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """debts: new ones, in bytes by data plane."""

    asks: Sequence[Ask]
    debts: Mapping[str, float]
