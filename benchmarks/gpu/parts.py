"""Running parts one after the other within a budget of time."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.gpu.record import Record
from benchmarks.load.provenance import provenance

Clock = Callable[[], float]


class Skipped(Exception):
    """A part cannot run here; the text says why and what would help."""


class Budget:
    """Seconds until parts must be over. clock: monotonic seconds."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._until_s = clock() + seconds

    def now_s(self) -> float:
        return self._clock()

    @property
    def left_s(self) -> float:
        return self._until_s - self._clock()


def rounds_in(within_s: float, round_s: float, *, at_least: int, at_most: int) -> int:
    """How many rounds of `round_s` fit."""
    return max(at_least, min(at_most, int(within_s / max(round_s, 1e-9))))


@dataclass(frozen=True)
class Part:
    """estimate_s: how long it takes at most, by what is known; a part is begun only if so much is
    left. run: what it measured, for its section; it may raise Skipped."""

    name: str
    estimate_s: float
    run: Callable[[], dict[str, Any]]


def run_parts(
    parts: Iterable[Part],
    record: Record,
    budget: Budget,
    *,
    commit: str,
    say: Callable[[str], None],
) -> None:
    """Each part that has no section yet. What one fails with is its section, and the others go on.

    commit: of the source tree, where it is no git checkout.
    """
    for part in parts:
        if record.is_done(part.name):
            say(f"{part.name}: kept, measured at {record.sections[part.name]['measured_at']}")
            continue
        if part.estimate_s > budget.left_s:
            left_s = max(0.0, budget.left_s)
            reason = f"takes up to {part.estimate_s:.0f} s of the {left_s:.0f} s left: run again"
            record.skip(part.name, reason)
            say(f"{part.name}: skipped: {reason}")
            continue
        say(f"{part.name}: up to {part.estimate_s:.0f} s, {budget.left_s:.0f} s left")
        started_s = budget.now_s()
        try:
            section = {"state": "done", "result": part.run()}
        except Skipped as skipped:
            record.skip(part.name, str(skipped))
            say(f"{part.name}: skipped: {skipped}")
            continue
        except Exception as error:  # whatever it is, it is this part's alone
            section = {"state": "failed", **_described(error)}
            say(f"{part.name}: FAILED: {section['reason']}: {section['message']}")
        _release_memory()
        elapsed_s = budget.now_s() - started_s
        record.put(part.name, {**section, "seconds": elapsed_s, **origin(commit)})
        say(f"{part.name}: {section['state']} after {elapsed_s:.1f} s")
    record.write()


def _described(error: Exception) -> dict[str, str]:
    reason = error.reason if isinstance(error, BenchError) else type(error).__name__
    trace = traceback.format_exception(error)
    return {"reason": reason, "message": str(error)[:500], "trace": "".join(trace)[-4000:]}


def origin(commit: str) -> dict[str, object]:
    origin = provenance()
    if commit:
        origin["commit"] = commit[:12]
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    return {**origin, "torch": torch.__version__, "triton": triton_version}


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
