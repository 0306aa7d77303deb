"""How demand is counted, and the bounds of what Redis keeps of it: the same for all scripts."""

from __future__ import annotations

import math
from functools import cached_property

import msgspec

HALF_LIVES_S = (30.0, 300.0, 3600.0)
"""Of the rates of requests. The scripts count on there being three."""

FOLLOW_HALF_LIFE_S = 3600.0


class DemandLimits(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Times in ms, as Redis counts. tau_ms: in which counts fade to 1/e, by half-life.

    max_adapters: counted at once; the one asked for least in minutes is forgotten.
    max_followers: known to follow one adapter. session_ms: after it, what a tenant asks for follows
    nothing. repeat_ms: after it, what came true may be predicted again. num_top: adapters that a
    tick looks at, beside those that follow a visit in min_share of its times. max_lookups: adapters
    times data planes that it looks at. max_predictions: open ones. max_waiting:
    directives that a data plane did not fetch yet, beyond which it gets no more predictions.
    max_step_ms: what a gap between two looks at the clock counts for at most. keep: weight of all
    earlier predictions at each one that is scored, and of earlier gaps between visits.
    """

    tau_ms: tuple[float, float, float] = tuple(1e3 * half / math.log(2) for half in HALF_LIVES_S)  # type: ignore[assignment]
    follow_tau_ms: float = 1e3 * FOLLOW_HALF_LIFE_S / math.log(2)
    follow_expiry_ms: int = 6 * 3600 * 1000
    session_ms: int = 120_000
    repeat_ms: int = 30_000
    max_adapters: int = 4096
    max_followers: int = 8
    max_tenants: int = 10_000
    max_visited: int = 64
    num_top: int = 128
    max_lookups: int = 4096
    min_share: float = 0.2
    max_predictions: int = 1024
    max_waiting: int = 100
    max_step_ms: int = 3_600_000
    keep: float = 0.98

    @cached_property
    def json(self) -> str:
        return msgspec.json.encode(self).decode()
