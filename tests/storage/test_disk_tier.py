import asyncio
import errno
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from storage import disk_tier
from storage.adapter.manifest import digest_of
from storage.disk_tier import DiskTier
from storage.errors import TierFullError, TierWriteError
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from tests.helpers.waiting import eventually
from tests.storage.samples import files

SAMPLES = {digest_of(f.config, f.weights): f for f in (files(seed) for seed in range(6))}
DIGESTS = list(SAMPLES)
SIZE = max(f.size_bytes for f in SAMPLES.values())


def tier_of(root: Path, entries: int = 10) -> DiskTier:
    return DiskTier(root, SIZE * entries)


async def fill(tier: DiskTier, *indices: int) -> None:
    for index in indices:
        await tier.put(DIGESTS[index], SAMPLES[DIGESTS[index]])


def on_disk(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {".lock", ".claims"}


async def test_what_was_put_comes_back(tmp_path: Path) -> None:
    tier = tier_of(tmp_path / "new" / "root")
    assert await tier.get(DIGESTS[0]) is None
    await fill(tier, 0)
    found = await tier.get(DIGESTS[0])
    assert found is not None
    assert (found.config, found.weights) == (
        SAMPLES[DIGESTS[0]].config,
        SAMPLES[DIGESTS[0]].weights,
    )
    assert tier.digests() == {DIGESTS[0]}
    stats = tier.stats()
    assert (stats.num_hits, stats.num_misses, stats.num_entries) == (1, 1, 1)
    assert stats.entry_bytes == SAMPLES[DIGESTS[0]].size_bytes


async def test_layout_is_plain_peft_by_digest(tmp_path: Path) -> None:
    await fill(tier_of(tmp_path), 0)
    assert on_disk(tmp_path) == {DIGESTS[0]}
    assert on_disk(tmp_path / DIGESTS[0]) == {CONFIG_NAME, WEIGHTS_NAME}


async def test_least_recently_used_leaves_first(tmp_path: Path) -> None:
    tier = tier_of(tmp_path, entries=3)
    await fill(tier, 0, 1, 2)
    await tier.get(DIGESTS[0])
    await fill(tier, 3)
    assert tier.digests() == on_disk(tmp_path) == {DIGESTS[i] for i in (0, 2, 3)}
    assert tier.stats().num_evictions == 1
    assert await tier.get(DIGESTS[1]) is None


async def test_putting_again_is_a_use(tmp_path: Path) -> None:
    tier = tier_of(tmp_path, entries=2)
    await fill(tier, 0, 1, 0, 2)
    assert tier.digests() == {DIGESTS[0], DIGESTS[2]}


async def test_bytes_on_disk_never_exceed_the_bound(tmp_path: Path) -> None:
    tier = tier_of(tmp_path, entries=2)
    for index in (0, 1, 2, 3, 4, 5, 0, 3):
        await fill(tier, index)
        used = sum(p.stat().st_size for p in tmp_path.glob("*/*"))
        assert used == tier.stats().entry_bytes <= SIZE * 2


async def test_restart_remembers_sizes_and_order_of_use(tmp_path: Path) -> None:
    first = tier_of(tmp_path, entries=3)
    await fill(first, 0, 1, 2)
    await first.get(DIGESTS[0])
    second = tier_of(tmp_path, entries=3)
    assert second.digests() == {DIGESTS[i] for i in (0, 1, 2)}
    assert second.stats().entry_bytes == first.stats().entry_bytes
    await fill(second, 3)
    assert DIGESTS[1] not in second.digests()


async def test_restart_with_less_room_applies_it(tmp_path: Path) -> None:
    await fill(tier_of(tmp_path), 0, 1, 2)
    assert tier_of(tmp_path, entries=1).digests() == {DIGESTS[2]} == on_disk(tmp_path)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty", "link"])
async def test_damaged_entries_are_dropped_not_served(
    tmp_path: Path, name: str, damage: str
) -> None:
    tier = tier_of(tmp_path / "root")
    await fill(tier, 0)
    path = tmp_path / "root" / DIGESTS[0] / name
    data = path.read_bytes()
    if damage == "flip":
        place = data.index(b'"r": 4') + 5 if name == CONFIG_NAME else len(data) - 1
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif damage == "truncate":
        path.write_bytes(data[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if damage == "link":
            (tmp_path / "elsewhere").write_bytes(b"x")
            path.symlink_to(tmp_path / "elsewhere")
    assert await tier.get(DIGESTS[0]) is None
    assert tier.stats().num_damaged == 1
    assert on_disk(tmp_path / "root") == set()
    await fill(tier, 0)
    assert await tier.get(DIGESTS[0]) is not None


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("damaged", [False, True])
async def test_what_is_made_while_files_are_proven_counts_only_if_they_are_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool, fails: bool
) -> None:
    tier = tier_of(tmp_path)
    await fill(tier, 0)
    if damaged:
        path = tmp_path / DIGESTS[0] / WEIGHTS_NAME
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    made = threading.Event()
    prove = tier._is_sound

    def prove_late(*given: Any) -> bool:
        assert made.wait(60), "nothing is made until all is proven"
        return prove(*given)

    monkeypatch.setattr(tier, "_is_sound", prove_late)

    async def make(files: AdapterFiles) -> int:
        made.set()
        if fails:
            raise LookupError("cannot be made")
        return files.size_bytes

    if damaged:
        assert await tier.get_and(make, DIGESTS[0]) is None
        assert tier.stats().num_damaged == tier.stats().num_misses == 1
    elif fails:
        with pytest.raises(LookupError):
            await tier.get_and(make, DIGESTS[0])
        assert tier.stats().num_damaged == 0
    else:
        assert await tier.get_and(make, DIGESTS[0]) == files(0).size_bytes
    assert made.is_set()


async def test_who_gives_up_does_not_wait_for_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tier_of(tmp_path)
    await fill(tier, 0)
    proving, go_on = threading.Event(), threading.Event()

    def prove(*_: object) -> bool:
        proving.set()
        return go_on.wait(60)

    monkeypatch.setattr(tier, "_is_sound", prove)
    getting = asyncio.create_task(tier.get(DIGESTS[0]))
    try:
        await eventually(proving.is_set)
        getting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(getting, 30)
    finally:
        go_on.set()


async def test_running_out_of_descriptors_costs_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tier_of(tmp_path)
    await fill(tier, 0)

    def exhausted(directory: int, name: str, limit: int) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(disk_tier, "read_entry_file", exhausted)
        assert await tier.get(DIGESTS[0]) is None
    assert await tier.get(DIGESTS[0]) is not None


async def test_too_large_for_the_whole_tier(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, SIZE - 100)
    with pytest.raises(TierFullError) as caught:
        await fill(tier, 0)
    assert caught.value.reason == "TIER_FULL"
    assert on_disk(tmp_path) == set()


async def test_failed_write_leaves_nothing_and_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tier_of(tmp_path)

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_tier, "write_durably", full)
    with pytest.raises(TierWriteError, match="No space"):
        await fill(tier, 0)
    assert on_disk(tmp_path) == set()
    assert await tier.get(DIGESTS[0]) is None


async def test_root_that_cannot_be_made_is_typed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TierWriteError):
        tier_of(tmp_path / "file")


CRASHING_WRITER = """
import asyncio, os, sys
from pathlib import Path
from storage import disk_tier
from tests.storage.test_disk_tier import fill, tier_of
honest = disk_tier.write_durably
def crash(path, data):
    honest(path, data)
    print("written", flush=True)
    if sys.argv[2] == "die":
        os._exit(1)
    sys.stdin.read()
disk_tier.write_durably = crash
asyncio.run(fill(tier_of(Path(sys.argv[1])), 0))
"""


def writer(root: Path, mode: str) -> subprocess.Popen[bytes]:
    here = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CRASHING_WRITER, str(root), mode],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(here)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


async def test_crash_in_mid_write_leaves_no_entry_and_restart_cleans_up(tmp_path: Path) -> None:
    with writer(tmp_path, "die") as process:
        process.communicate(timeout=100)
    assert process.returncode == 1
    assert len(on_disk(tmp_path)) == 1, "the half-written entry"
    tier = tier_of(tmp_path)
    assert on_disk(tmp_path) == set()
    assert tier.digests() == frozenset()
    assert await tier.get(DIGESTS[0]) is None


async def test_starting_beside_a_live_writer_spares_its_work(tmp_path: Path) -> None:
    with writer(tmp_path, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        tier = tier_of(tmp_path)
        assert len(on_disk(tmp_path)) == 1
        process.communicate(timeout=100)
    assert process.returncode == 0
    assert await tier.get(DIGESTS[0]) is not None, "another process's entry is found"
    assert tier.digests() == {DIGESTS[0]}


def _work(root: str, seed: int) -> int:
    async def run() -> int:
        tier = tier_of(Path(root), entries=3)
        for step in range(30):
            index = (step * 5 + seed) % 6
            await fill(tier, index)
            found = await tier.get(DIGESTS[(index + step) % 6])
            assert found is None or found.weights == SAMPLES[DIGESTS[(index + step) % 6]].weights
        return tier.stats().num_damaged

    return asyncio.run(run())


def test_processes_share_a_root(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        dropped = pool.starmap(_work, [(str(tmp_path), seed) for seed in range(3)])
    assert dropped == [0, 0, 0]
    tier = tier_of(tmp_path, entries=3)
    assert on_disk(tmp_path) == tier.digests()
    assert tier.stats().entry_bytes <= SIZE * 3


async def test_losing_the_race_for_a_digest_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tier_of(tmp_path), tier_of(tmp_path)
    honest = disk_tier.write_durably
    raced = False

    def race(path: Path, data: bytes) -> None:
        nonlocal raced
        if not raced:
            raced = True
            two._put(DIGESTS[0], SAMPLES[DIGESTS[0]])
        honest(path, data)

    monkeypatch.setattr(disk_tier, "write_durably", race)
    await fill(one, 0)
    assert raced
    assert on_disk(tmp_path) == {DIGESTS[0]}
    assert await one.get(DIGESTS[0]) is not None


async def test_reading_does_not_block_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tier_of(tmp_path)
    await fill(tier, 0)
    honest = disk_tier.read_entry_file
    reading, go_on = threading.Event(), threading.Event()

    def slow(directory: int, name: str, limit: int) -> bytes:
        reading.set()
        assert go_on.wait(30), "the loop does not go on"
        return honest(directory, name, limit)

    monkeypatch.setattr(disk_tier, "read_entry_file", slow)
    task = asyncio.create_task(tier.get(DIGESTS[0]))
    await eventually(reading.is_set)
    go_on.set()
    assert await task is not None


@pytest.mark.parametrize("digest", ["", "..", "a" * 63, "A" * 64, "../" + "a" * 61])
async def test_only_digests_become_paths(tmp_path: Path, digest: str) -> None:
    tier = tier_of(tmp_path)
    with pytest.raises(ValueError, match="not a digest"):
        await tier.get(digest)
    with pytest.raises(ValueError, match="not a digest"):
        await tier.put(digest, AdapterFiles(b"", b"", ""))


async def test_foreign_things_in_the_root_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README").write_bytes(b"x" * SIZE * 2)
    (tmp_path / "lost+found").mkdir()
    tier = tier_of(tmp_path, entries=1)
    await fill(tier, 0, 1)
    assert on_disk(tmp_path) == {"README", "lost+found", DIGESTS[1]}
