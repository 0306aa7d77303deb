"""Predictions that did not come true make the next ones rarer."""

from __future__ import annotations

import hashlib

from controlplane.prefetch.model import Kind, Score
from controlplane.prefetch.policy import PrefetchPolicy

_PRIOR = 4.0  # predictions taken for right before any was scored


def precision(score: Score) -> float:
    """The share of predictions that are hits, of late; 1 before any was decided."""
    return (score.recent_hits + _PRIOR) / (score.recent + _PRIOR)


def allowance(score: Score, policy: PrefetchPolicy) -> float:
    """The share of a kind's predictions to make: all while enough of them come true, and never
    none, so that a kind can show that it has become right again."""
    ratio = precision(score) / policy.min_precision
    return 1.0 if ratio >= 1 else max(policy.explore, ratio * ratio)


def is_drawn(share: float, kind: Kind, data_plane_id: str, identity: str, period: int) -> bool:
    """Whether this one is of the `share` to make; the same answer through all of a period."""
    if share >= 1:
        return True
    text = f"{kind} {data_plane_id} {identity} {period}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
