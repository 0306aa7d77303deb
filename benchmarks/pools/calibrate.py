"""What steps, loads and copies cost on this machine, measured on the real engine."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dataplane.channel import Adapter, Sampling, Submit
from dataplane.cost_model import CostModel
from dataplane.engine.engine import Engine
from dataplane.lora.layout import HostAdapter
from dataplane.pool.pool import PagePool

DECODE_SIZES = (1, 2, 4, 8, 16, 32)
PREFILL_SIZES = (16, 64, 160, 320, 480)
BESIDE = (0, 8)  # sequences that decode in the steps of a prefill
_STEPS = 6
_PROMPT_TOKENS = 16
_MAX_TOKENS = 512

Observation = tuple[int, int]
"""Tokens in prefill chunks, sequences that decode."""


class Calibration:
    """Drives `engine`, with room for 32 sequences of 128 tokens beside all adapters."""

    def __init__(self, engine: Engine, adapters: Sequence[Adapter], vocab_size: int) -> None:
        self._engine: Any = engine
        self._adapters = adapters
        self._random = random.Random(0)
        self._vocab_size = vocab_size
        self._next = 0
        self._last: tuple[float, Observation] | None = None
        self.seen: dict[Observation, list[float]] = {}
        observe = self._engine._costs.observe_step

        def observing(seconds: float, *, num_prefill: int, num_decode: int, **rest: int) -> None:
            self._last = seconds, (num_prefill, num_decode)
            observe(seconds, num_prefill=num_prefill, num_decode=num_decode, **rest)

        self._engine._costs.observe_step = observing

    def run(self, rounds: int) -> CostModel:
        """Sizes take turns, so that a machine whose speed drifts favours none. Each size counts
        once, by its median."""
        for _ in range(rounds):
            for size in DECODE_SIZES:
                self._decode(size)
            for beside in BESIDE:
                for size in PREFILL_SIZES:
                    self._prefill(size, beside)
        costs = CostModel()
        # Decode first: what a mixed step takes beyond its decoding is the prompt tokens'.
        for (num_prefill, num_decode), seconds in sorted(self.seen.items()):
            costs.observe_step(
                statistics.median(seconds), num_prefill=num_prefill, num_decode=num_decode
            )
        return costs

    def _decode(self, size: int) -> None:
        handles = self._start(size)
        for _ in range(_STEPS):
            self._step((0, size))
        self._end(handles)

    def _prefill(self, size: int, beside: int) -> None:
        running = self._start(beside)
        for _ in range(2):
            handle = self._submit(size)
            self._step((size, beside))
            self._end([handle])
        self._end(running)

    def _start(self, size: int) -> list[int]:
        handles = [self._submit(_PROMPT_TOKENS) for _ in range(size)]
        waiting = set(handles)
        while waiting:
            waiting -= {output.handle for output in self._step(None).outputs}
        return handles

    def _end(self, handles: Iterable[int]) -> None:
        for handle in handles:
            self._engine.abort(handle)

    def _submit(self, num_tokens: int) -> int:
        """Under the next adapter; it is resident, since nothing else needs the pool."""
        handle = self._next
        self._next += 1
        ids = [self._random.randrange(16, self._vocab_size) for _ in range(num_tokens)]
        self._engine.submit(
            Submit(
                handle=handle,
                prompt=ids,
                sampling=Sampling(max_tokens=_MAX_TOKENS, ignore_eos=True),
                adapter=self._adapters[handle % len(self._adapters)],
                arrival_s=time.monotonic(),
            )
        )
        return handle

    def _step(self, wanted: Observation | None) -> Any:
        self._last = None
        result = self._engine.step()
        if self._last is None:
            time.sleep(0.0005)
        elif wanted is not None and self._last[1] == wanted:
            self.seen.setdefault(wanted, []).append(self._last[0])
        return result


def copy_s_per_byte(pool: PagePool, adapters: Sequence[HostAdapter]) -> float:
    """From host memory into the pool."""
    rates: list[float] = []
    for adapter in adapters:
        pages = adapter.pages.shape[1]
        started_s = time.perf_counter()
        pool.data[:, :pages].copy_(adapter.pages)
        if pool.device.type == "cuda":
            torch.cuda.synchronize()
        rates.append((time.perf_counter() - started_s) / adapter.nbytes)
    return statistics.median(rates)
