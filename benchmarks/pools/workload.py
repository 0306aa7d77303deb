"""A `slora` run whose mix shifts: KV-heavy, adapter-heavy, KV-heavy again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.load.generators import slora
from benchmarks.load.workload import Phase, Request


@dataclass(frozen=True)
class Mix:
    """One phase's traffic: how many of the adapters, and lengths in [low, high)."""

    name: str
    num_adapters: int
    input_tokens: tuple[int, int]
    output_tokens: tuple[int, int]

    @property
    def mean_input(self) -> float:
        return (self.input_tokens[0] + self.input_tokens[1] - 1) / 2

    @property
    def mean_output(self) -> float:
        return (self.output_tokens[0] + self.output_tokens[1] - 1) / 2

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return self.input_tokens[1] + self.output_tokens[1] - 2


@dataclass(frozen=True)
class Shift:
    """phases: (mix, requests a second). All phases last `phase_s`, one right after the other."""

    phases: tuple[tuple[Mix, float], ...]
    phase_s: float
    alpha: float
    cv: float

    def requests(self, adapters: Sequence[str], seed: int) -> list[Phase]:
        """Times count from the start of the run, indices are its own."""
        made: list[Phase] = []
        index = 0
        for number, (mix, rate) in enumerate(self.phases):
            (phase,) = slora(
                adapters[: mix.num_adapters],
                alpha=self.alpha,
                cv=self.cv,
                rate=rate,
                duration_s=self.phase_s,
                input_tokens=mix.input_tokens,
                output_tokens=mix.output_tokens,
                seed=seed * 1000 + number,
            ).phases
            start_s = number * self.phase_s
            made.append(Phase(mix.name, _later(phase.requests, start_s, index)))
            index += len(phase.requests)
        return made


def _later(requests: Sequence[Request], start_s: float, index: int) -> tuple[Request, ...]:
    return tuple(
        replace(each, index=each.index + index, at_s=start_s + (each.at_s or 0.0))
        for each in requests
    )
