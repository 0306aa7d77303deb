"""Counts that fade, as Redis keeps them: see store/lua/_demand.lua."""

from __future__ import annotations

import math
from collections.abc import Sequence

from controlplane.prefetch.limits import DemandLimits

_WEIGHTS = (0.25, 0.5, 0.25)


def rates_per_s(
    scores: Sequence[float], now_ms: float, limits: DemandLimits
) -> tuple[float, float, float]:
    """Requests per second by half-life, from the logarithms of their counts."""
    short, middle, long = (
        1e3 * math.exp(score - now_ms / tau_ms) / tau_ms
        for score, tau_ms in zip(scores, limits.tau_ms, strict=True)
    )
    return short, middle, long


def expected_rate(rates: Sequence[float]) -> float:
    """Requests per second to expect in the next minutes.

    Between what was asked for just now, which a single request makes look popular, and what was
    asked for all along.
    """
    return sum(weight * rate for weight, rate in zip(_WEIGHTS, rates, strict=True))


def shares(followers: Sequence[tuple[str, float]]) -> dict[str, float]:
    """What part of the visits each one followed. followers: with the logarithms of their counts,
    "" for all visits."""
    scores = dict(followers)
    visits = scores.pop("", None)
    if visits is None:
        return {}
    return {identity: min(1.0, math.exp(score - visits)) for identity, score in scores.items()}


def num_visits(followers: Sequence[tuple[str, float]], now_ms: float, tau_ms: float) -> float:
    """Visits lately, older ones fading."""
    return math.exp(dict(followers).get("", -math.inf) - now_ms / tau_ms)
