"""An engine in this process whose step loop runs as that of an engine process: it sleeps when there
is nothing to compute and wakes when a load ends."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np

from benchmarks.errors import BenchError
from benchmarks.load.workload import FIRST_TOKEN_ID
from dataplane.channel import Adapter, Output, Sampling, Submit
from dataplane.engine import process_settings
from dataplane.engine.setup import build_engine
from dataplane.engine_options import EngineOptions

_IDLE_S = 0.05
_TIER_S = 60.0  # within which a tier takes in or lets go of an adapter


def settle() -> None:
    """Makes this process what an engine's is. For commands: tests share theirs."""
    process_settings.settle()
    gc.collect()
    gc.freeze()


class StepLoop:
    """Owns an engine; `stop` must be called."""

    def __init__(self, options: EngineOptions, *, vocab_size: int) -> None:
        self._wake = threading.Event()
        self.parts = build_engine(options, self._wake.set)
        self.parts.loader.start()
        self.engine = self.parts.engine
        self._vocab_size = vocab_size
        self._handles = count()

    def stop(self) -> None:
        self.parts.loader.stop()

    def submit(
        self,
        adapter: Adapter | None,
        *,
        prompt_tokens: int,
        new_tokens: int,
        prompt: Sequence[int] | None = None,
    ) -> int:
        """A request with `prompt`, or else one of its own that no cache knows; its handle."""
        handle = next(self._handles)
        ids = prompt
        if ids is None:
            generator = np.random.default_rng((11, handle))
            ids = generator.integers(FIRST_TOKEN_ID, self._vocab_size, size=prompt_tokens).tolist()
        self.engine.submit(
            Submit(
                handle=handle,
                prompt=list(ids),
                sampling=Sampling(max_tokens=new_tokens, ignore_eos=True),
                adapter=adapter,
                arrival_s=time.monotonic(),
            )
        )
        return handle

    def step(self) -> list[Output]:
        """One turn of the loop. Raises: BenchError when a request fails."""
        engine = self.engine
        busy = (engine.has_work and not engine.is_waiting_for_loads) or engine.is_copying
        if not busy:
            self._wake.wait(_IDLE_S)
        self._wake.clear()
        if not engine.has_work and not engine.is_bringing_adapters:
            return []
        result = engine.step()
        if result.failures:
            handle, error = result.failures[0]
            raise BenchError("REQUEST_FAILED", f"request {handle} failed: {str(error)[:500]}")
        return result.outputs

    def run_until(self, done: Callable[[list[Output]], bool], timeout_s: float = 300.0) -> None:
        """Steps until `done` of a step's outputs. Raises: BenchError when that takes too long."""
        until_s = time.monotonic() + _TIER_S
        while not done(self.step()):
            if time.monotonic() > until_s:
                raise BenchError("TOO_SLOW", f"not done after {timeout_s:g} s")

    def first_token_s(self, adapter: Adapter | None, prompt_tokens: int) -> float:
        """Seconds from a request's submission to its only token."""
        started_s = time.perf_counter()
        handle = self.submit(adapter, prompt_tokens=prompt_tokens, new_tokens=1)
        self.run_until(lambda outputs: any(each.handle == handle for each in outputs))
        return time.perf_counter() - started_s

    def use_once(self, adapters: Sequence[Adapter]) -> None:
        """Each of them loaded, used and let go of."""
        for adapter in adapters:
            self.first_token_s(adapter, 1)

    def forget_in_pool(self) -> None:
        self.engine.clear_idle()

    def forget_in_host(self, adapter: Adapter) -> None:
        """Waits until host memory has let go of it."""
        self.parts.loader.discard(adapter.digest)
        self._until(lambda: adapter.digest not in self.parts.loader.residency().host)

    def wait_on_disk(self, adapter: Adapter) -> None:
        self._until(lambda: adapter.digest in self.parts.loader.residency().disk)

    def check_empty(self) -> None:
        """Raises: BenchError unless no page is in use and every page has one owner."""
        report = self.engine.inspect(0)
        if report.problem or report.num_used_pages:
            raise BenchError(
                "PAGES_LEFT",
                f"after the run {report.num_used_pages} pages are in use: {report.problem[:300]}",
                metadata={"num_used_pages": str(report.num_used_pages)},
            )

    def time_calls(self, owner: Any, name: str, add: Callable[[float], None]) -> None:
        """From now on tells `add` the seconds of each call of `owner.name`."""
        call = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            before_s = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                add(time.perf_counter() - before_s)

        setattr(owner, name, timed)

    def _until(self, condition: Callable[[], bool]) -> None:
        until_s = time.monotonic() + _TIER_S
        while not condition():
            if time.monotonic() > until_s:
                raise BenchError("TOO_SLOW", f"a tier did not follow in {_TIER_S:g} s")
            time.sleep(0.002)
