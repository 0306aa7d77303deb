"""The scripts `reserve`, `predict` and `prefetch` in Python, for simulations without a Redis.

tests/benchmarks/test_prefetch.py holds it equal to them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from controlplane.prefetch import decay
from controlplane.prefetch.limits import DemandLimits
from controlplane.prefetch.model import (
    KINDS,
    Ask,
    Follow,
    Kind,
    Open,
    Plane,
    Score,
    Snapshot,
    Wanted,
)
from controlplane.prefetch.snapshot import Prediction

Scores = dict[str, float]


class DemandTable:
    """Times in ms of the demand clock. describe: an identity's fixed fields. is_there:
    whether a data plane has an identity in memory, by its last report."""

    def __init__(
        self,
        limits: DemandLimits,
        describe: Callable[[str], Wanted],
        is_there: Callable[[str, str], bool],
    ) -> None:
        self._limits = limits
        self._describe = describe
        self._is_there = is_there
        self._counts: tuple[Scores, Scores, Scores] = ({}, {}, {})
        self._names: dict[str, tuple[str, float]] = {}
        self._sessions: Scores = {}
        self._session_last: dict[str, tuple[float, str]] = {}
        self._gap_ms: float | None = None
        self._visited: Scores = {}
        self._followers: dict[str, tuple[Scores, float]] = {}  # and when they expire
        self._predictions: OrderedDict[tuple[str, str], Prediction] = OrderedDict()
        self._scores: dict[Kind, Score] = {kind: Score() for kind in KINDS}

    def reserve(
        self,
        now_ms: float,
        asked: Iterable[tuple[str, str, str, int]],
        visits: Iterable[tuple[str, str]],
    ) -> None:
        """asked: data plane, identity, name, requests. visits: tenant, identity."""
        limits = self._limits
        for data_plane, identity, name, count in asked:
            for counts, tau_ms in zip(self._counts, limits.tau_ms, strict=True):
                _bump(counts, identity, now_ms, tau_ms, count)
            if name:
                self._names[identity] = name, now_ms
                self._settle_hit(data_plane, identity, now_ms)
        middle = self._counts[1]
        for identity in _least(middle, len(middle) - limits.max_adapters):
            self._forget(identity)
        for tenant, identity in visits:
            self._visit(tenant, identity, now_ms)
        for identity in _least(self._visited, len(self._visited) - limits.max_visited):
            del self._visited[identity]
        gone = _least(self._sessions, len(self._sessions) - limits.max_tenants)
        old = now_ms - limits.session_ms
        gone += [each for each in _least(self._sessions, 100) if self._sessions[each] < old]
        for tenant in gone:
            self._sessions.pop(tenant, None)
            self._session_last.pop(tenant, None)

    def snapshot(self, now_ms: float, planes: Sequence[Plane]) -> Snapshot:
        """What the predictor sees at a tick; ends what is over, and takes the visits."""
        self._end_predictions(now_ms, {plane.data_plane_id for plane in planes})
        limits, wanted = self._limits, dict[str, Wanted]()
        follows: list[Follow] = []
        for identity in sorted(self._visited, key=lambda each: (self._visited[each], each)):
            if self._visited[identity] < now_ms - limits.session_ms:
                continue
            table = self._followed(identity, now_ms)
            followers = [(each, table[each]) for each in _most(table, len(table))]
            visits = decay.num_visits(followers, now_ms, limits.follow_tau_ms)
            follows += [
                Follow(each, share, visits)
                for each, share in decay.shares(followers).items()
                if share >= limits.min_share
            ]
        self._visited.clear()
        found = [follow.identity for follow in follows]
        for counts, share in zip(self._counts, (4, 1, 2), strict=True):
            found += _most(counts, limits.num_top // share)
        most = max(limits.num_top // 4, limits.max_lookups // max(len(planes), 1))
        looked_at = [each for each in dict.fromkeys(found) if not each.startswith(":")][:most]
        for identity in looked_at:
            if identity in self._names:
                rate = self._rate(identity, now_ms)
                idle_s = (now_ms - self._names[identity][1]) / 1000
                wanted[identity] = replace(self._describe(identity), rate=rate, idle_s=idle_s)
        bases = {each.base_model for each in wanted.values()}
        return Snapshot(
            now_s=now_ms / 1000,
            wanted=wanted,
            follows=[each for each in follows if each.identity in wanted],
            planes=planes,
            open=[
                Open(*place, each.state, each.tier, each.size_bytes)
                for place, each in self._predictions.items()
            ],
            total_rate={base: self._rate(f":{base}", now_ms) for base in bases},
            scores=dict(self._scores),
            gap_s=None if self._gap_ms is None else self._gap_ms / 1000,
        )

    def made(self, now_ms: float, asks: Iterable[Ask]) -> list[Ask]:
        """Notes predictions; those that may be told."""
        told: list[Ask] = []
        for ask in asks:
            place = ask.data_plane_id, ask.wanted.identity
            if place in self._predictions or len(self._predictions) >= self._limits.max_predictions:
                continue
            self._predictions[place] = Prediction(
                state="open",
                kind=ask.kind,
                tier=ask.tier,
                size_bytes=ask.wanted.size_bytes,
                made_ms=now_ms,
                ends_ms=now_ms + int(ask.horizon_s * 1000),
            )
            score = self._scores[ask.kind]
            self._scores[ask.kind] = replace(
                score,
                num_made=score.num_made + 1,
                asked_bytes=score.asked_bytes + ask.wanted.size_bytes,
            )
            told.append(ask)
        return told

    def joined(self, data_plane_id: str) -> None:
        """It begins anew: what was predicted for it is neither right nor wrong."""
        for place in [each for each in self._predictions if each[0] == data_plane_id]:
            del self._predictions[place]

    def _visit(self, tenant: str, identity: str, now_ms: float) -> None:
        since = self._sessions.get(tenant, -math.inf)
        fresh = now_ms - since <= self._limits.session_ms
        last = self._session_last.get(tenant) if fresh else None
        self._sessions[tenant] = now_ms
        came_ms, before = last or (0.0, "")
        if before == identity:
            return
        self._session_last[tenant] = now_ms, identity
        tau_ms, keep = self._limits.follow_tau_ms, self._limits.keep
        if before in self._names:
            followers = self._followed(before, now_ms)
            if identity not in followers and len(followers) > self._limits.max_followers:
                (least,) = _least(followers, 1)
                followers[identity] = followers.pop(least)
            _bump(followers, identity, now_ms, tau_ms, 1)
            gap_ms = now_ms - came_ms
            earlier_ms = gap_ms if self._gap_ms is None else self._gap_ms
            self._gap_ms = keep * earlier_ms + (1 - keep) * gap_ms
        if identity in self._names:
            followers = self._followed(identity, now_ms)
            _bump(followers, "", now_ms, tau_ms, 1)
            self._followers[identity] = followers, now_ms + self._limits.follow_expiry_ms
            self._visited[identity] = now_ms

    def _followed(self, identity: str, now_ms: float) -> Scores:
        followers, ends_ms = self._followers.get(identity, ({}, math.inf))
        if now_ms >= ends_ms:
            followers, ends_ms = {}, math.inf
        self._followers[identity] = followers, ends_ms
        return followers

    def _rate(self, identity: str, now_ms: float) -> float:
        scores = [counts.get(identity, -math.inf) for counts in self._counts]
        return decay.expected_rate(decay.rates_per_s(scores, now_ms, self._limits))

    def _forget(self, identity: str) -> None:
        for counts in self._counts:
            counts.pop(identity, None)
        for table in (self._names, self._visited, self._followers):
            table.pop(identity, None)

    def _settle_hit(self, data_plane: str, identity: str, now_ms: float) -> None:
        prediction = self._predictions.get((data_plane, identity))
        if prediction is not None and prediction.state == "open":
            ends_ms = min(prediction.ends_ms, now_ms + self._limits.repeat_ms)
            self._predictions[data_plane, identity] = Prediction(
                state="hit",
                kind=prediction.kind,
                tier=prediction.tier,
                size_bytes=prediction.size_bytes,
                made_ms=prediction.made_ms,
                ends_ms=ends_ms,
            )
            there = self._is_there(data_plane, identity)
            self._score(prediction.kind, "hit" if there else "late")

    def _end_predictions(self, now_ms: float, live: set[str]) -> None:
        for place, each in list(self._predictions.items()):
            if each.ends_ms <= now_ms:
                del self._predictions[place]
                if each.state == "open" and place[0] in live:
                    self._score(each.kind, "miss")

    def _score(self, name: str, outcome: Literal["hit", "late", "miss"]) -> None:
        kind: Kind = next(kind for kind in KINDS if kind == name)
        score, keep = self._scores[kind], self._limits.keep
        self._scores[kind] = replace(
            score,
            num_hits=score.num_hits + (outcome == "hit"),
            num_late=score.num_late + (outcome == "late"),
            num_misses=score.num_misses + (outcome == "miss"),
            recent=score.recent * keep + 1,
            recent_hits=score.recent_hits * keep + (outcome == "hit"),
        )


def _bump(counts: Scores, member: str, now_ms: float, tau_ms: float, count: int) -> None:
    new = now_ms / tau_ms + math.log(count)
    score = counts.get(member)
    if score is not None:
        high, low = max(score, new), min(score, new)
        new = high + math.log(1 + math.exp(low - high))
    counts[member] = new


def _least(counts: Mapping[str, float], count: int) -> list[str]:
    """As ZRANGE: by score, then by name."""
    if count <= 0:
        return []
    return sorted(counts, key=lambda each: (counts[each], each))[:count]


def _most(counts: Mapping[str, float], count: int) -> list[str]:
    """As ZREVRANGE."""
    return sorted(counts, key=lambda each: (counts[each], each), reverse=True)[:count]
