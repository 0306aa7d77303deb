"""Whether the client itself kept up: a benchmark of a client that lags measures the client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

_INTERVAL_S = 0.02
MAX_LOOP_LAG_S = 0.025
MAX_DISPATCH_LAG_S = 0.05
MAX_CPU_SHARE = 0.8


@dataclass
class Lag:
    """loop_lag_s: how much later than asked the event loop woke, sampled every 20 ms.

    cpu_share: of one core, by this whole process, while it was watched.
    """

    loop_lag_s: list[float] = field(default_factory=list[float])
    cpu_share: float = 0.0

    def report(self, dispatch_lag_s: list[float]) -> dict[str, object]:
        """dispatch_lag_s: how much later than due each request of an open loop was sent."""
        loop_p99, dispatch_p99 = _p99(self.loop_lag_s), _p99(dispatch_lag_s)
        reasons = [
            f"{what} {value:.3f} is above {limit:g}"
            for what, value, limit in (
                ("event loop lag p99 in seconds", loop_p99, MAX_LOOP_LAG_S),
                ("dispatch lag p99 in seconds", dispatch_p99, MAX_DISPATCH_LAG_S),
                ("share of one core", self.cpu_share, MAX_CPU_SHARE),
            )
            if value > limit
        ]
        return {
            "loop_lag_p99_s": loop_p99,
            "loop_lag_max_s": max(self.loop_lag_s, default=0.0),
            "dispatch_lag_p99_s": dispatch_p99,
            "dispatch_lag_max_s": max(dispatch_lag_s, default=0.0),
            "cpu_share": self.cpu_share,
            "kept_up": not reasons,
            "doubts": reasons,
        }


@asynccontextmanager
async def watched() -> AsyncGenerator[Lag]:
    """Measures while the body runs; `cpu_share` is set when it ends."""
    lag = Lag()
    task = asyncio.create_task(_sample(lag))
    started_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        yield lag
    finally:
        elapsed_s = max(time.perf_counter() - started_s, 1e-9)
        lag.cpu_share = (time.process_time() - cpu_s) / elapsed_s
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _sample(lag: Lag) -> None:
    while True:
        before_s = time.perf_counter()
        await asyncio.sleep(_INTERVAL_S)
        lag.loop_lag_s.append(max(0.0, time.perf_counter() - before_s - _INTERVAL_S))


def _p99(values: list[float]) -> float:
    return float(np.percentile(values, 99)) if values else 0.0
