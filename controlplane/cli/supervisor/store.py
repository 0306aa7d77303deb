"""Keeps the embedded Redis running."""

from __future__ import annotations

import asyncio
import time

from controlplane.cli.errors import PartFailedError
from controlplane.cli.supervisor.keeper import Report, ending, restart_policy
from controlplane.store.embedded import EmbeddedRedis

POLL_S = 0.1
NUM_LAST_LINES = 20


async def keep_store(redis: EmbeddedRedis, report: Report) -> None:
    """Starts `redis`, which runs, anew whenever it has died; ends only by cancellation.

    Raises: PartFailedError when it keeps dying; the errors of EmbeddedRedis.start.
    """
    policy = restart_policy()
    while True:
        started_s = time.monotonic()
        while (status := redis.poll()) is None:
            await asyncio.sleep(POLL_S)
        delay_s = policy.after_end(time.monotonic() - started_s)
        if delay_s is None:
            lines = redis.log_path.read_text(errors="replace").splitlines()[-NUM_LAST_LINES:]
            why = f"{ending(status)} again and again"
            raise PartFailedError("redis", status, why, redis.log_path, lines)
        report(f"redis {ending(status)}; starting it again in {delay_s:.1f} s")
        await asyncio.sleep(delay_s)
        # Blocks for some milliseconds, and must run on this, the main thread: the server is to
        # die with it.
        redis.start()
