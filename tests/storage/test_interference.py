"""Sources that are slow, fail or hang, beside others that are well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.adapter.manifest import digest_of
from storage.disk_tier import DiskTier
from storage.errors import (
    DigestMismatchError,
    SourceAccessError,
    SourceTimeoutError,
    SourceUnavailableError,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.flight import AdapterRef
from storage.host_tier import HostTier
from storage.loader import TieredLoader
from storage.sources import LocalDirectorySource, SourceOptions, build_router, local
from storage.sources.retry import Patience
from storage.sources.slots import origin_of
from tests.helpers.waiting import eventually
from tests.helpers.web import Web, serving
from tests.storage.samples import files

PATIENT = Patience(stall_s=60, attempt_s=60, total_s=100, max_attempts=2, first_pause_s=0.01)


def put(web: Web, folder: str, sample: AdapterFiles, **fields: object) -> AdapterRef:
    web.put(f"/{folder}/{CONFIG_NAME}", sample.config, **fields)
    web.put(f"/{folder}/{WEIGHTS_NAME}", bytes(sample.weights), **fields)
    return AdapterRef(digest_of(sample.config, sample.weights), f"{web.url}/{folder}")


@contextlib.asynccontextmanager
async def loading(
    root: Path, *webs: Web, patience: Patience = PATIENT
) -> AsyncGenerator[TieredLoader[str]]:
    """A loader that takes at most two at a time from one origin."""
    router = build_router(
        SourceOptions(
            allowed=[web.url for web in webs], private_hosts=["127.0.0.1"], patience=patience
        )
    )
    loader = TieredLoader(
        router,
        DiskTier(root, 1 << 20),
        HostTier[str](1 << 20),
        lambda parsed: (parsed.manifest.digest, 1),
        max_concurrent_loads=2,
    )
    try:
        yield loader
    finally:
        await loader.aclose()
        await router.aclose()


async def test_each_gets_its_own_end(tmp_path: Path) -> None:
    """Ten adapters of a host that hangs, one that fails, one that trickles, one that is well."""
    with serving() as hanging, serving() as failing, serving() as well:
        gate = threading.Event()
        stuck = [put(hanging, str(n), files(n), hang=gate) for n in range(10)]
        broken = put(failing, "a", files(10), busy=100)
        slow = put(well, "slow", files(11), piece_bytes=400, pause_s=0.02)
        good = put(well, "good", files(12))
        async with loading(tmp_path, hanging, failing, well) as loader:
            waiting = [asyncio.create_task(loader.load(ref)) for ref in stuck]
            await eventually(lambda: len(hanging.requests) == 2)
            trickling = asyncio.create_task(loader.load(slow))
            assert await loader.load(good) == good.digest
            with pytest.raises(SourceUnavailableError, match="503"):
                await loader.load(broken)
            assert await trickling == slow.digest
            assert not any(task.done() for task in waiting) and len(hanging.requests) == 2
            assert await loader.load(good) == good.digest
            # They come back: who still waits gets the adapter, who failed when asked again.
            gate.set()
            for task, ref in zip(waiting, stuck, strict=True):
                assert await task == ref.digest
            for page in failing.pages.values():
                page.busy = 0
            assert await loader.load(broken) == broken.digest


async def test_all_who_wait_for_a_host_that_hangs_are_told_in_turn(tmp_path: Path) -> None:
    with serving() as hanging:
        gate = threading.Event()
        stuck = [put(hanging, str(n), files(n), hang=gate) for n in range(4)]
        hasty = replace(PATIENT, stall_s=0.2)
        async with loading(tmp_path / "hasty", hanging, patience=hasty) as loader:
            loads = [loader.load(ref) for ref in stuck]
            for error in await asyncio.gather(*loads, return_exceptions=True):
                assert isinstance(error, SourceUnavailableError)
        gate.set()
        async with loading(tmp_path / "patient", hanging) as loader:
            for ref in stuck:
                assert await loader.load(ref) == ref.digest


async def test_new_content_under_an_address_is_refused_until_registered(tmp_path: Path) -> None:
    with serving() as web:
        ref = put(web, "a", files(1))
        newer = put(web, "a", files(2))
        async with loading(tmp_path, web) as loader:
            with pytest.raises(DigestMismatchError):
                await loader.load(ref)
            assert await loader.load(newer) == newer.digest
            assert loader.residency().host == {newer.digest}


async def test_anothers_token_does_not_fail_mine(tmp_path: Path) -> None:
    with serving() as web:
        sample = files(1)
        ref = put(web, "a", sample, token="good", pause_s=0.05)
        async with loading(tmp_path, web) as loader:
            bad = AdapterRef(ref.digest, ref.source, "bad")
            good = AdapterRef(ref.digest, ref.source, "good")
            refused = asyncio.create_task(loader.load(bad))
            await asyncio.sleep(0)
            assert await loader.load(good) == ref.digest
            with pytest.raises(SourceAccessError):
                await refused


async def test_a_mount_that_hangs_holds_up_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = files(1)
    for name in ("hung/a", "well/a"):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        (directory / CONFIG_NAME).write_bytes(sample.config)
        (directory / WEIGHTS_NAME).write_bytes(sample.weights)
    gate = threading.Event()
    hanging: list[int] = []
    honest = local._open_beneath

    def hang(root: Path, parts: tuple[str, ...]) -> int:
        if "hung" in parts:
            hanging.append(threading.get_ident())
            gate.wait(60)
        return honest(root, parts)

    monkeypatch.setattr(local, "_open_beneath", hang)
    source = LocalDirectorySource([tmp_path], total_s=0.3)
    descriptors = len(os.listdir("/proc/self/fd"))
    hung = [asyncio.create_task(source.fetch(str(tmp_path / "hung" / "a"))) for _ in range(40)]
    await eventually(lambda: len(hanging) == 32)
    monkeypatch.setattr(source, "_total_s", 60.0)  # of those that come now
    assert (await source.fetch(str(tmp_path / "well" / "a"))).weights == sample.weights
    errors = await asyncio.gather(*hung, return_exceptions=True)
    # At most so many threads hang; the others are told at once.
    assert {type(error) for error in errors} == {SourceTimeoutError, SourceUnavailableError}
    assert sum(type(error) is SourceTimeoutError for error in errors) == 32
    gate.set()
    async with asyncio.timeout(60):
        while True:  # once the threads have ended
            with contextlib.suppress(SourceUnavailableError):
                found = await source.fetch(str(tmp_path / "hung" / "a"))
                break
            await asyncio.sleep(0.02)
    assert found.weights == sample.weights
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("hf://org/a", "hf://org/b@main", True),
        ("hf://org/a", "hf://other/a", False),
        ("https://host/a", "https://HOST/b/c", True),
        ("https://host/a", "https://host:8443/a", False),
        ("s3://bucket/a", "s3://other/a", False),
        ("/mnt/x/a", "file:///mnt/x/b/", True),
        ("/mnt/x/a", "/mnt/y/a", False),
        ("/mnt/x/a", "//mnt/./z/..//x/./a/.", True),
        ("/mnt/x/a", "FILE:///mnt/%78/a", True),
        ("/mnt/%78/a", "/mnt/x/a", False),
        ("blob:" + "a" * 64, "blob:" + "b" * 64, True),
    ],
)
def test_origins(one: str, other: str, same: bool) -> None:
    assert (origin_of(one) == origin_of(other)) is same
