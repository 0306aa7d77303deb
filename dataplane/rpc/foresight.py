"""What the control plane expected of first tokens, beside what they took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.registry import Collector

from chorale.request_metrics import Histogram

_NAME = "chorale_data_plane_expected_to_true_first_token_ratio"
_RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.33, 2.0, 4.0, 10.0)
_MIN_S = 1e-3


class Foresight(Collector):
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._ratios = Histogram(_RATIOS)

    def note(self, expected_s: float, took_s: float) -> None:
        """expected_s: of the ticket. took_s: from arrival here."""
        self._ratios.observe(expected_s / max(took_s, _MIN_S))

    def collect(self) -> Iterator[Any]:
        yield self._ratios.family(
            _NAME,
            "Seconds to the first token that admission expected, over those it took. Requests that "
            "had none, as those refused here, are not in it.",
        )
