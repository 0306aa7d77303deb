"""Cases that take turns, so that a machine whose speed drifts favours none."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Case = Callable[[], float]
"""One turn of a case: its rate or its time."""


@dataclass(frozen=True)
class Ratio:
    """A line of the table: median over rounds of `over` ÷ `under` within each round.

    scale: what the quotient is multiplied with, as 1 / a roofline. at_least, at_most: what must
    hold; None where nothing is promised.
    """

    name: str
    over: str
    under: str
    scale: float = 1.0
    at_least: float | None = None
    at_most: float | None = None


def interleaved(cases: Mapping[str, Case], rounds: int) -> dict[str, list[float]]:
    """One figure a round for each case. The order turns round by round."""
    names = list(cases)
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            values[name].append(cases[name]())
    return values


def judged(ratios: list[Ratio], values: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Each ratio with its rounds, its median and whether it "held": None without a bound."""
    lines: list[dict[str, Any]] = []
    for ratio in ratios:
        pairs = zip(values[ratio.over], values[ratio.under], strict=True)
        quotients = [over / under * ratio.scale for over, under in pairs]
        median = statistics.median(quotients)
        held = None
        if ratio.at_least is not None:
            held = median >= ratio.at_least
        if ratio.at_most is not None:
            held = held is not False and median <= ratio.at_most
        lines.append(
            {
                "name": ratio.name,
                "over": ratio.over,
                "under": ratio.under,
                "scale": ratio.scale,
                "rounds": quotients,
                "median": median,
                "at_least": ratio.at_least,
                "at_most": ratio.at_most,
                "held": held,
            }
        )
    return lines


def print_ratios(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        bound = ""
        if line["at_least"] is not None:
            bound = f">= {line['at_least']:g}"
        if line["at_most"] is not None:
            bound += f"<= {line['at_most']:g}"
        verdict = {None: "", True: "holds", False: "DOES NOT HOLD"}[line["held"]]
        spread = f"{min(line['rounds']):.2f} to {max(line['rounds']):.2f}"
        print(f"{line['name']:<56}{line['median']:>8.3f}  ({spread})  {bound} {verdict}".rstrip())
