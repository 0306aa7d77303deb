"""What getting an adapter back costs here, measured by tier."""

from __future__ import annotations

from storage.fading_line import FadingLine

_KEEP = 0.9  # weight of the past at each observation
# Until something was measured: only the order of the tiers and of sizes matters then.
_NOMINAL_S = {"disk": 0.002, "source": 0.05}
_NOMINAL_BYTES_PER_S = {"disk": 5e8, "source": 5e7}


class ReloadCosts:
    """Seconds = a fixed part + bytes x rate, fitted by tier to what loads took.

    The fixed part is what makes a small adapter dear for its size.
    """

    def __init__(self) -> None:
        self._lines: dict[str, FadingLine] = {}

    def observe(self, tier: str, seconds: float, size_bytes: int) -> None:
        """tier: "disk" or "source"."""
        self._lines.setdefault(tier, FadingLine(_KEEP)).observe(size_bytes, seconds)

    def seconds(self, tier: str, size_bytes: int) -> float:
        line = self._lines.get(tier)
        if line is None:
            return _NOMINAL_S[tier] + size_bytes / _NOMINAL_BYTES_PER_S[tier]
        return line.at(size_bytes, from_origin=True)
