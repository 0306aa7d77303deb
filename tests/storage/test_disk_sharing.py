"""Several processes on one disk tier: bounds, readers, fetches, and deaths at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from storage import disk_tier
from storage.adapter.manifest import digest_of
from storage.disk_tier import DiskTier
from storage.errors import TierFullError
from storage.files import AdapterFiles
from storage.flight import AdapterRef
from storage.host_tier import HostTier
from storage.loader import TieredLoader
from storage.locks import Claim
from storage.sources import ANYBODY, Access, SourceRouter
from tests.helpers.waiting import eventually
from tests.storage.samples import files
from tests.storage.test_disk_tier import DIGESTS, SAMPLES, SIZE, fill, on_disk, tier_of

ROOT = Path(__file__).parents[2]


def entry_bytes(root: Path) -> int:
    """What the files in it take at one moment: those that come while others go are not added up."""
    while True:
        names = set(os.listdir(root)) - {".claims"}
        total = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for file in os.scandir(root / name):
                    if file.name != "reservation":
                        with contextlib.suppress(FileNotFoundError):
                            total += file.stat().st_size
        if set(os.listdir(root)) - {".claims"} == names:
            return total


def worker(root: Path, max_bytes: int, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.storage.disk_workers", str(root), str(max_bytes), str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )


async def check_root(root: Path, max_bytes: int) -> None:
    """Everything there verifies, and nothing else is left after the next start."""
    tier = DiskTier(root, max_bytes)
    assert on_disk(root) == tier.digests()
    for digest in tier.digests():
        assert await tier.get(digest) is not None
    assert tier.stats().num_damaged == 0
    assert tier.stats().entry_bytes <= max_bytes


async def kill_at_random(root: Path, num_kills: int, seed: int) -> None:
    """Two workers at any time; one of them is killed after a random while, again and again."""
    chance = random.Random(seed)
    max_bytes = SIZE * 5
    workers = [worker(root, max_bytes, n) for n in range(2)]
    try:
        for process in workers:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"working\n"
        for number in range(num_kills):
            end = time.monotonic() + chance.uniform(0.0, 0.25)
            while time.monotonic() < end:
                # An entry on its way out may be seen.
                assert await asyncio.to_thread(entry_bytes, root) <= max_bytes + SIZE
                await asyncio.sleep(0.01)
            victim = workers.pop(0)
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL, "a worker got a wrong answer"
            victim.communicate()
            workers.append(worker(root, max_bytes, number + 2))
            assert workers[-1].stdout is not None
            assert await asyncio.to_thread(workers[-1].stdout.readline) == b"working\n"
    finally:
        for process in workers:
            process.kill()
            process.communicate()
    await check_root(root, max_bytes)


async def test_killed_at_any_moment_it_verifies(tmp_path: Path) -> None:
    await kill_at_random(tmp_path, num_kills=4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_killed_at_any_moment_many_times(tmp_path: Path) -> None:
    num_kills = int(os.environ.get("CHORALE_DISK_KILLS", "200"))
    await kill_at_random(tmp_path, num_kills, seed=time.time_ns())


async def test_an_entry_is_not_evicted_under_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tier_of(tmp_path, entries=2), tier_of(tmp_path, entries=2)
    await fill(mine, 0, 1)
    reading, go_on = threading.Event(), threading.Event()
    honest = disk_tier.read_entry_file

    def slow(directory: int, name: str, limit: int) -> bytes:
        reading.set()
        assert go_on.wait(60)
        return honest(directory, name, limit)

    with monkeypatch.context() as patch:
        patch.setattr(disk_tier, "read_entry_file", slow)
        found = asyncio.create_task(mine.get(DIGESTS[0]))
        await asyncio.to_thread(reading.wait)
        await fill(other, 2)  # entry 0 is the oldest, but in use: entry 1 goes
        assert on_disk(tmp_path) == {DIGESTS[0], DIGESTS[2]}
        with pytest.raises(TierFullError, match="being read"):
            tight = DiskTier(tmp_path, SIZE)
            await fill(tight, 3)
        assert DIGESTS[0] in on_disk(tmp_path)
        go_on.set()
        files_ = await found
    assert files_ is not None and files_.weights == SAMPLES[DIGESTS[0]].weights


async def test_room_is_reserved_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers at once do not both take the last room."""
    room = SAMPLES[DIGESTS[0]].size_bytes + SAMPLES[DIGESTS[1]].size_bytes - 1
    one, two = DiskTier(tmp_path, room), DiskTier(tmp_path, room)
    writing, go_on = threading.Event(), threading.Event()
    honest = disk_tier.write_durably

    def slow(path: Path, data: bytes) -> None:
        honest(path, data)
        writing.set()
        assert go_on.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(disk_tier, "write_durably", slow)
        first = asyncio.create_task(fill(one, 0))
        await asyncio.to_thread(writing.wait)
        patch.setattr(disk_tier, "write_durably", honest)
        with pytest.raises(TierFullError):
            await fill(two, 1)
        go_on.set()
        await first
    assert on_disk(tmp_path) == {DIGESTS[0]}


async def test_a_dead_writers_reservation_is_given_back(tmp_path: Path) -> None:
    tier = tier_of(tmp_path, entries=1)
    left = tmp_path / ".tmp-dead"
    left.mkdir()
    with (left / "reservation").open("wb") as file:
        file.truncate(SIZE)
    await fill(tier, 0)
    assert on_disk(tmp_path) == {DIGESTS[0]}


async def test_claims_exclude_and_end_with_their_holder(tmp_path: Path) -> None:
    one, two = tier_of(tmp_path), tier_of(tmp_path)
    held = await one.claim(DIGESTS[0], max_wait_s=0)
    assert held.is_held
    assert not (await two.claim(DIGESTS[0], max_wait_s=0.05)).is_held
    assert (await two.claim(DIGESTS[1], max_wait_s=0)).is_held
    waiting = asyncio.create_task(two.claim(DIGESTS[0], max_wait_s=60))
    await asyncio.sleep(0.02)
    held.release()
    held.release()
    again = await waiting
    assert again.is_held
    again.release()
    assert (await one.claim(DIGESTS[0], max_wait_s=0)).is_held


async def test_where_no_lock_can_be_had_nobody_waits(tmp_path: Path) -> None:
    tier = tier_of(tmp_path)
    (tmp_path / ".claims").rmdir()
    began = time.monotonic()
    claim = await tier.claim(DIGESTS[0], max_wait_s=60)
    assert not claim.is_held and time.monotonic() - began < 50
    claim.release()


class Slow:
    """A source that counts, and waits for `gate`."""

    def __init__(self, contents: AdapterFiles) -> None:
        self.contents = contents
        self.num_fetched = 0
        self.gate = asyncio.Event()

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        self.num_fetched += 1
        await self.gate.wait()
        return self.contents


class Asked(DiskTier):
    """Counts who wants to fetch."""

    num_asked = 0

    async def claim(self, digest: str, *, max_wait_s: float) -> Claim:
        self.num_asked += 1
        return await super().claim(digest, max_wait_s=max_wait_s)


def loader_of(disk: DiskTier, source: Slow, max_wait_s: float) -> TieredLoader[str]:
    return TieredLoader(
        SourceRouter({"mem": source}),
        disk,
        HostTier[str](1 << 20),
        lambda parsed: (parsed.manifest.digest, 1),
        max_claim_wait_s=max_wait_s,
    )


@pytest.mark.parametrize("holder_hangs", [False, True])
async def test_what_several_processes_want_is_fetched_once(
    tmp_path: Path, holder_hangs: bool
) -> None:
    sample = files(1)
    ref = AdapterRef(digest_of(sample.config, sample.weights), "mem://host/a")
    slow, other = Slow(sample), Slow(sample)
    other.gate.set()
    asked = Asked(tmp_path, 1 << 20)
    one = loader_of(DiskTier(tmp_path, 1 << 20), slow, 60.0)
    two = loader_of(asked, other, 0.2 if holder_hangs else 60.0)
    first = asyncio.create_task(one.load(ref))
    await eventually(lambda: slow.num_fetched == 1)
    began_s = time.monotonic()
    second = asyncio.create_task(two.load(ref))
    await eventually(lambda: asked.num_asked == 1)
    if holder_hangs:
        assert await second == ref.digest, "it is waited for so long, and no longer"
        assert time.monotonic() - began_s >= 0.2 and slow.num_fetched == 1
        slow.gate.set()
        await first
    else:
        await asyncio.sleep(0.05)
        assert (slow.num_fetched, other.num_fetched) == (1, 0)
        slow.gate.set()
        assert await first == await second == ref.digest
    assert (slow.num_fetched, other.num_fetched) == (1, int(holder_hangs))
    await one.aclose()
    await two.aclose()
