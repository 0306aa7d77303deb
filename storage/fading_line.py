"""A straight line through what was measured, where older points count less and less."""

from __future__ import annotations


class FadingLine:
    """Weighted least squares of y = intercept + slope x, both kept from going below zero.

    keep: weight of the past at each observation, above 0 and below 1.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._w = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, x: float, y: float) -> None:
        self._w = self._keep * self._w + 1.0
        self._x = self._keep * self._x + x
        self._y = self._keep * self._y + y
        self._xx = self._keep * self._xx + x * x
        self._xy = self._keep * self._xy + x * y

    @property
    def per_unit(self) -> float:
        """y per x, fixed part included; 0 before there was any x."""
        return self._y / self._x if self._x else 0.0

    def at(self, x: float, *, from_origin: bool = False) -> float:
        """y expected at x; 0 before the first observation. As long as one x only was seen the line
        is level there, or, with from_origin, goes through 0."""
        if not self._w:
            return 0.0
        mean_x, mean_y = self._x / self._w, self._y / self._w
        variance = self._xx / self._w - mean_x * mean_x
        if variance <= 1e-6 * max(mean_x * mean_x, 1.0):
            return self.per_unit * x if from_origin and mean_x else mean_y
        covariance = self._xy / self._w - mean_x * mean_y
        slope = min(max(covariance / variance, 0.0), mean_y / mean_x)
        return mean_y + slope * (x - mean_x)
