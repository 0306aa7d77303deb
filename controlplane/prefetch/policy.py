"""How boldly to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.prefetch.model import Kind


@dataclass(frozen=True, slots=True)
class PrefetchPolicy:
    """budget_bytes_per_s: of each data plane. horizon_s: within which a prediction must come true;
    for what follows so many times the gap between visits (follow_gaps), at least min_follow_s.
    min_chance: of a use within it, below which nothing is asked for; what follows is brought to the
    pool from pool_chance on. doubt_visits: visits that a share is held against, in which nothing
    followed, as one of one means little. tier_share: of a tier, for predictions that did not come
    true yet (a data plane itself allows a quarter). fill_share: of a tier, for what is asked for
    most; nothing beyond that is brought, as it would push out what is. warm_s: so long after a
    Join, a data plane is brought what it will be asked for. spill_load: requests over places, by
    which others must be ahead of it so that it is brought what they have. loading_s: so long after
    a request, its adapter may be on its way to where nobody has it. busy_share: of a data plane's
    places, that requests for one adapter may take before another data plane gets it, too.
    min_precision: below it, predictions of a kind are made less often, down to `explore`.
    max_loading: adapters on their way at which a data plane gets no more. max_asks: for one data
    plane in one tick.
    """

    budget_bytes_per_s: int = 128 << 20
    horizon_s: Mapping[Kind, float] = field(
        default_factory=lambda: {"follow": 120.0, "warm_up": 300.0, "rate": 60.0}
    )
    follow_gaps: float = 3.0
    min_follow_s: float = 10.0
    min_chance: Mapping[Kind, float] = field(
        default_factory=lambda: {"follow": 0.35, "warm_up": 0.5, "rate": 0.6}
    )
    pool_chance: float = 0.8
    doubt_visits: float = 2.0
    tier_share: float = 0.2
    fill_share: float = 0.8
    warm_s: float = 60.0
    spill_load: float = 0.9
    loading_s: float = 5.0
    busy_share: float = 0.5
    min_precision: float = 0.3
    explore: float = 0.05
    max_loading: int = 8
    max_asks: int = 16

    def horizon_of(self, kind: Kind, gap_s: float | None) -> float:
        """Seconds. gap_s: between the visits of a session, where that is known."""
        longest_s = self.horizon_s[kind]
        if kind != "follow" or gap_s is None:
            return longest_s
        return min(longest_s, max(self.min_follow_s, self.follow_gaps * gap_s))
