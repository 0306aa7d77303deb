"""Processes that share a disk tier, to be killed at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from pathlib import Path

from storage.adapter.manifest import digest_of
from storage.disk_tier import DiskTier
from storage.errors import TierError
from tests.storage.samples import files

NUM_SAMPLES = 12


async def work(root: Path, max_bytes: int, seed: int) -> None:
    """Puts and gets until killed; ends with status 3 when an answer is wrong."""
    made = {digest_of(f.config, f.weights): f for f in (files(n) for n in range(NUM_SAMPLES))}
    chance = random.Random(seed)
    tier = DiskTier(root, max_bytes)
    print("working", flush=True)
    while True:
        digest = chance.choice(list(made))
        found = await tier.get(digest)
        if found is not None:
            if found.weights != made[digest].weights:
                sys.exit(3)
            continue
        claim = await tier.claim(digest, max_wait_s=0.05)
        # While what is there is being read, the tier says no rather than exceed its bound.
        with contextlib.suppress(TierError):
            await tier.put(digest, made[digest])
        claim.release()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
