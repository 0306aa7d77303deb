"""From what the scripts return to a snapshot, and to what people are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from controlplane.fleet.counters import Counters
from controlplane.fleet.model import Load
from controlplane.prefetch import decay
from controlplane.prefetch.limits import DemandLimits
from controlplane.prefetch.model import (
    KINDS,
    Follow,
    Kind,
    Open,
    Plane,
    Score,
    Snapshot,
    Wanted,
)
from controlplane.prefetch.policy import PrefetchPolicy
from controlplane.registry.model import decode_version
from controlplane.store.client import as_dict

_TIERS = {"p": "pool", "h": "host", "d": "disk"}


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """As it stands in Redis. Times in ms of the demand clock."""

    state: str
    ends_ms: float
    made_ms: float = 0
    kind: str = ""
    tier: str = ""
    size_bytes: int = 0


_prediction_decoder = msgspec.json.Decoder(Prediction, strict=False)


def decode_snapshot(reply: Sequence[Any], limits: DemandLimits, policy: PrefetchPolicy) -> Snapshot:
    """Of script `predict` when it says OK."""
    now_ms, real_now_ms = int(reply[1]), int(reply[2])
    gap_ms = as_dict(reply[8]).get("gap_ms")
    wanted = {row[0]: _wanted(row, now_ms, limits) for row in reply[3]}
    return Snapshot(
        now_s=now_ms / 1000,
        wanted=wanted,
        follows=[
            follow
            for visit in reply[4]
            for follow in _follows(visit[1], now_ms, limits)
            if follow.identity in wanted
        ],
        planes=[
            _plane(row, list(wanted), now_ms, real_now_ms, policy.budget_bytes_per_s)
            for row in reply[6]
            if row[1]
        ],
        open=[
            Open(*_place(field), each.state, each.tier, each.size_bytes)
            for field, each in decode_predictions(reply[7]).items()
        ],
        total_rate={
            base: decay.expected_rate(decay.rates_per_s(numbers(scores), now_ms, limits))
            for base, scores in reply[5]
        },
        scores=decode_scores(reply[8]),
        gap_s=float(gap_ms) / 1000 if gap_ms else None,
    )


def decode_predictions(flat: Sequence[str]) -> dict[str, Prediction]:
    """By "data_plane_id identity"."""
    return {field: _prediction_decoder.decode(json) for field, json in as_dict(flat).items()}


def decode_scores(flat: Sequence[str]) -> dict[Kind, Score]:
    """Of every kind."""
    counts = as_dict(flat)

    def count(what: str, kind: Kind) -> int:
        return int(counts.get(f"{what}:{kind}", 0))

    return {
        kind: Score(
            num_made=count("made", kind),
            num_hits=count("hits", kind),
            num_late=count("late", kind),
            num_misses=count("misses", kind),
            asked_bytes=count("bytes", kind),
            recent=float(counts.get(f"recent:{kind}", 0)),
            recent_hits=float(counts.get(f"recent_hits:{kind}", 0)),
        )
        for kind in KINDS
    }


def numbers(texts: Sequence[str]) -> list[float]:
    return [float(text) for text in texts]


def pairs(flat: Sequence[str]) -> list[tuple[str, float]]:
    return [(name, float(score)) for name, score in zip(flat[::2], flat[1::2], strict=True)]


def _wanted(row: Sequence[Any], now_ms: int, limits: DemandLimits) -> Wanted:
    identity, name, record, source, private, pinned, scores, since_ms = row
    digest, _, base_model = identity.partition(":")
    return Wanted(
        identity=identity,
        digest=digest,
        base_model=base_model,
        name=name,
        source=source,
        size_bytes=decode_version(record).size_bytes,
        rate=decay.expected_rate(decay.rates_per_s(numbers(scores), now_ms, limits)),
        idle_s=(now_ms - int(since_ms)) / 1000,
        private=private == "1",
        pinned=pinned == "1",
    )


def _follows(flat: Sequence[str], now_ms: int, limits: DemandLimits) -> list[Follow]:
    followers = pairs(flat)
    num_visits = decay.num_visits(followers, now_ms, limits.follow_tau_ms)
    return [
        Follow(identity, share, num_visits) for identity, share in decay.shares(followers).items()
    ]


def _plane(
    row: Sequence[Any], identities: Sequence[str], now_ms: int, real_now_ms: int, budget: int
) -> Plane:
    data_plane_id, base_model, load, num_placed, counters, joined_ms, debt, debt_ms, where = row
    paid = (now_ms - int(debt_ms)) / 1000 * budget
    # A clock that was set says nothing about when a data plane has joined.
    age_s = (real_now_ms - int(joined_ms)) / 1000 if joined_ms else math.inf
    return Plane(
        data_plane_id=data_plane_id,
        base_model=base_model,
        load=Load.unpack(load),
        counters=Counters.unpack(counters),
        held={
            identity: _TIERS[letter]
            for identity, letter in zip(identities, where, strict=True)
            if letter in _TIERS
        },
        num_placed=int(num_placed or 0),
        age_s=age_s if 0 <= age_s < math.inf else None,
        debt_bytes=max(0.0, int(debt) - paid),
    )


def _place(field: str) -> tuple[str, str]:
    data_plane_id, _, identity = field.partition(" ")
    return data_plane_id, identity
