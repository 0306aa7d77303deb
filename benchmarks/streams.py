"""Endless streams in an engine of this process, and the gaps between their tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.errors import BenchError
from benchmarks.step_loop import StepLoop

_PROMPT_TOKENS = 32
_MIN_GAPS = 20


@dataclass
class Gaps:
    """Seconds between the tokens of each stream, by window."""

    windows: list[list[float]] = field(default_factory=list[list[float]])

    def add(self, gaps: list[float]) -> float:
        """Notes a window; its 99th percentile. Raises: BenchError when it has too few tokens."""
        if len(gaps) < _MIN_GAPS:
            raise BenchError("WINDOW_TOO_SHORT", f"{len(gaps)} tokens in a window; make it longer")
        self.windows.append(gaps)
        return float(np.percentile(gaps, 99))

    def percentile(self, percent: float) -> float:
        """Over the gaps of all windows."""
        return float(np.percentile([gap for window in self.windows for gap in window], percent))

    def figures(self) -> dict[str, object]:
        return {
            "num_gaps": sum(len(window) for window in self.windows),
            **{f"p{percent}": self.percentile(percent) for percent in (50, 90, 99)},
            "worst": self.percentile(100),
            "p99_of_windows": [float(np.percentile(window, 99)) for window in self.windows],
            "p50_of_windows": [float(np.percentile(window, 50)) for window in self.windows],
        }


class Streams:
    """One that reaches its end is replaced, and its first gap not counted."""

    def __init__(self, loop: StepLoop, num_streams: int, new_tokens: int) -> None:
        self._loop = loop
        self._new_tokens = new_tokens
        self._last_s: dict[int, float | None] = {}
        for _ in range(num_streams):
            self._begin()
        loop.run_until(lambda _: self._all_decode(), 120.0)

    def window(
        self, goes_on: Callable[[], bool], on_token: Callable[[int], None] | None = None
    ) -> list[float]:
        """Steps while `goes_on`; the gaps. on_token: told of the others' tokens."""
        gaps: list[float] = []
        for handle in self._last_s:
            self._last_s[handle] = None
        while goes_on():
            self._turn(gaps, on_token)
        return gaps

    def _all_decode(self) -> bool:
        self._turn([], None)
        return all(last_s is not None for last_s in self._last_s.values())

    def _turn(self, gaps: list[float], on_token: Callable[[int], None] | None) -> None:
        outputs = self._loop.step()
        now_s = time.perf_counter()
        for output in outputs:
            if output.handle not in self._last_s:
                if on_token is not None:
                    on_token(output.handle)
                continue
            last_s = self._last_s[output.handle]
            if last_s is not None:
                gaps.append(now_s - last_s)
            self._last_s[output.handle] = now_s
            if output.finish:
                del self._last_s[output.handle]
                self._begin()

    def _begin(self) -> None:
        handle = self._loop.submit(None, prompt_tokens=_PROMPT_TOKENS, new_tokens=self._new_tokens)
        self._last_s[handle] = None
