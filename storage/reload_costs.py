"""What getting an adapter back costs here, measured by tier."""

from __future__ import annotations

_KEEP = 0.9  # weight of the past at each observation
# Until something was measured: only the order of the tiers and of sizes matters then.
_NOMINAL_S = {"disk": 0.002, "source": 0.05}
_NOMINAL_BYTES_PER_S = {"disk": 5e8, "source": 5e7}


class ReloadCosts:
    """Seconds = a fixed part + bytes x rate, fitted by tier to what loads took.

    The fixed part is what makes a small adapter dear for its size.
    """

    def __init__(self) -> None:
        self._fits: dict[str, _Fit] = {}

    def observe(self, tier: str, seconds: float, size_bytes: int) -> None:
        """tier: "disk" or "source"."""
        self._fits.setdefault(tier, _Fit()).observe(size_bytes, seconds)

    def seconds(self, tier: str, size_bytes: int) -> float:
        fit = self._fits.get(tier)
        if fit is None:
            return _NOMINAL_S[tier] + size_bytes / _NOMINAL_BYTES_PER_S[tier]
        return fit.at(size_bytes)


class _Fit:
    """Weighted least squares of a line through what was seen, neither part below zero."""

    def __init__(self) -> None:
        self._w = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, x: float, y: float) -> None:
        self._w = _KEEP * self._w + 1.0
        self._x = _KEEP * self._x + x
        self._y = _KEEP * self._y + y
        self._xx = _KEEP * self._xx + x * x
        self._xy = _KEEP * self._xy + x * y

    def at(self, x: float) -> float:
        mean_x, mean_y = self._x / self._w, self._y / self._w
        variance = self._xx / self._w - mean_x * mean_x
        if variance <= 1e-6 * max(mean_x * mean_x, 1.0):
            # One size was seen: all of it is taken to go by bytes.
            return mean_y * x / mean_x if mean_x else mean_y
        slope = max(0.0, (self._xy / self._w - mean_x * mean_y) / variance)
        slope = min(slope, mean_y / mean_x)
        return mean_y + slope * (x - mean_x)
