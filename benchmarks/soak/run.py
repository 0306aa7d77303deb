"""Many thousand mixed requests through one engine, and the proof that nothing is left of them."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.soak.leaks import live_objects, table_sizes
from benchmarks.soak.traffic import Asked, Traffic
from dataplane.channel import Output
from dataplane.engine.engine import Engine
from dataplane.engine.setup import EngineParts
from dataplane.errors import DeadlineError, HopelessError, NonFiniteOutputError
from storage.errors import StorageError

_IDLE_S = 0.0005
_REPORT_EVERY_S = 5.0
_SETTLE_S = 10.0


@dataclass
class Soak:
    """in_flight: requests under way at any time. ended: how requests ended, by kind."""

    parts: EngineParts
    traffic: Traffic
    num_requests: int
    in_flight: int
    check_every: int  # steps between two proofs of the pool's books
    show: Callable[[str], None]
    ended: Counter[str] = field(default_factory=Counter[str])
    num_tokens: int = 0
    num_steps: int = 0
    _open: dict[int, Asked] = field(default_factory=dict[int, Asked])
    _cancel_at: dict[int, list[int]] = field(default_factory=dict[int, list[int]])

    def run(self) -> dict[str, Any]:
        """What happened. Raises: BenchError at the first wrong token, wrong failure, or leak."""
        engine = self.parts.engine
        started_s = shown_s = time.monotonic()
        handle = 0
        while handle < self.num_requests or engine.has_work:
            while handle < self.num_requests and len(self._open) < self.in_flight:
                self._ask(engine, handle)
                handle += 1
            self._step(engine)
            if time.monotonic() - shown_s >= _REPORT_EVERY_S:
                shown_s = time.monotonic()
                self.show(f"{handle:>9} asked, {dict(self.ended)}")
        if self._open:
            raise BenchError("REQUEST_LOST", f"{len(self._open)} requests never ended")
        elapsed_s = time.monotonic() - started_s
        stats = engine.stats()
        return {
            "num_requests": self.num_requests,
            "ended": dict(self.ended),
            "num_checked_tokens": self.num_tokens,
            "num_steps": self.num_steps,
            "num_preemptions": stats.num_preemptions,
            "num_prefix_hit_tokens": stats.num_prefix_hit_tokens,
            "elapsed_s": elapsed_s,
            **self._left_over(engine),
        }

    def _ask(self, engine: Engine, handle: int) -> None:
        asked = self.traffic.next(handle, time.monotonic())
        self._open[handle] = asked
        if asked.cancel_after is not None:
            self._cancel_at.setdefault(self.num_steps + asked.cancel_after, []).append(handle)
        engine.submit(asked.submit)

    def _step(self, engine: Engine) -> None:
        for handle in self._cancel_at.pop(self.num_steps, ()):
            if self._open.pop(handle, None) is not None:
                engine.abort(handle)
                self.ended["cancelled"] += 1
        self.num_steps += 1
        result = engine.step()
        for output in result.outputs:
            self._take(output)
        for handle, error in result.failures:
            self._fail(handle, error)
        if self.num_steps % self.check_every == 0:
            engine.check_integrity()
        if not result.outputs and engine.is_waiting_for_loads:
            time.sleep(_IDLE_S)

    def _take(self, output: Output) -> None:
        asked = self._open.get(output.handle)
        if asked is None:
            raise BenchError("OUTPUT_UNWANTED", f"{output.handle} was over, but got more tokens")
        name = asked.submit.adapter.name if asked.submit.adapter else "base"
        if asked.expected is None:
            raise BenchError("OUTPUT_WRONG", f"{name} gave {output.token_ids}, it cannot be served")
        end = asked.got + len(output.token_ids)
        if output.token_ids != asked.expected[asked.got : end]:
            raise BenchError(
                "OUTPUT_WRONG",
                f"request {output.handle} of {name}: {output.token_ids} at {asked.got}, expected"
                f" {asked.expected[asked.got : end]}",
            )
        asked.got = end
        self.num_tokens += len(output.token_ids)
        if output.finish:
            if (output.finish, end) != (asked.finish, len(asked.expected)):
                raise BenchError(
                    "OUTPUT_WRONG", f"{output.handle} ended by {output.finish} after {end} tokens"
                )
            del self._open[output.handle]
            self.ended["completed"] += 1

    def _fail(self, handle: int, error: Exception) -> None:
        asked = self._open.pop(handle, None)
        if asked is None:
            raise BenchError("FAILURE_UNWANTED", f"{handle} was over, but failed: {error}")
        if asked.expected is None:
            if not isinstance(error, (NonFiniteOutputError, StorageError)):
                raise BenchError("FAILURE_WRONG", f"request {handle} failed: {error!r}") from error
        elif not (asked.may_be_late and isinstance(error, (DeadlineError, HopelessError))):
            raise BenchError("FAILURE_WRONG", f"request {handle} failed: {error!r}") from error
        self.ended[str(getattr(error, "reason", type(error).__name__))] += 1

    def _left_over(self, engine: Engine) -> dict[str, Any]:
        """Raises: BenchError unless pool and tables are as empty as at the start."""
        report = engine.inspect(0)
        if report.problem or report.num_used_pages:
            raise BenchError(
                "PAGES_LEFT",
                f"{report.num_used_pages} pages are in use at the end: {report.problem[:300]}",
            )
        engine.clear_idle()
        engine.check_integrity()
        owned = sum(bool(owner) for owner in engine.inspect(0).owners)
        if owned:
            raise BenchError("PAGES_LEFT", f"{owned} idle pages were not given back")
        # A load that nobody waited for any more may still be under way.
        deadline_s = time.monotonic() + _SETTLE_S
        in_host = len(self.parts.loader.residency().host)
        while (found := live_objects(in_host)) and time.monotonic() < deadline_s:
            time.sleep(0.05)
            engine.step()
            gc.collect()
            in_host = len(self.parts.loader.residency().host)
        if found:
            raise BenchError("OBJECTS_LEFT", f"still alive at the end: {found}")
        return {"num_in_host": in_host, "tables": table_sizes(engine)}
