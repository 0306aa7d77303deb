"""Object stores through fsspec, with its in-memory file system in their place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.errors import (
    AdapterTooLargeError,
    PickleRefusedError,
    SourceAccessError,
    SourceExtraMissingError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceUnavailableError,
    UnsupportedSchemeError,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME
from storage.limits import AdapterLimits
from storage.sources import Access, SourceOptions, bucket, build_router
from storage.sources.retry import Patience
from tests.storage.samples import files

SAMPLE = files(1)
PATIENT = Patience(stall_s=60, total_s=100, max_attempts=3, first_pause_s=0.01)
HASTY = replace(PATIENT, stall_s=0.3)
URI = "s3://bucket/dir/a"


class Store(MemoryFileSystem):
    """A bucket with versions, and with faults on request."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[list[Exception | threading.Event]] = []
    versions: ClassVar[dict[str, int]] = {}
    num_reads: ClassVar[int] = 0
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").strip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        found = super().info(path)
        return {**found, "ETag": str(self.versions.get(self._strip_protocol(path), 0))}

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        type(self).num_reads += 1
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            fault.wait(60)
        return super().cat_file(path, start=start, end=end)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    fsspec.register_implementation("s3", Store, clobber=True)
    monkeypatch.setattr(bucket, "_CHUNK_BYTES", 500)
    made = Store()
    for name, data in ((CONFIG_NAME, SAMPLE.config), (WEIGHTS_NAME, bytes(SAMPLE.weights))):
        made.pipe_file(f"{URI}/{name}", data)
    yield made
    for held in (Store.store, Store.versions, Store.faults):
        held.clear()
    Store.num_reads = 0
    registry: Any = import_module("fsspec.registry")
    registry._registry.pop("s3", None)


async def fetch(uri: str = URI, limits: AdapterLimits | None = None, **fields: Any) -> Any:
    fields = {"allowed": ["s3://bucket/dir"], "patience": PATIENT, **fields}
    made = build_router(SourceOptions(**fields), limits or AdapterLimits())
    try:
        return await made.fetch(uri)
    finally:
        await made.aclose()


async def test_reads_both_files_in_pieces(store: Store) -> None:
    found = await fetch(URI + "/")
    assert (found.config, found.weights) == (SAMPLE.config, SAMPLE.weights)
    assert found.uri == URI
    assert Store.num_reads == 1 + -(-len(SAMPLE.weights) // 500)


async def test_faults_pass_and_what_came_is_kept(store: Store) -> None:
    Store.faults[:] = [ConnectionError("reset"), OSError("slow down")]
    assert (await fetch()).weights == SAMPLE.weights
    assert Store.num_reads == 3 + -(-len(SAMPLE.weights) // 500)


async def test_a_bucket_that_hangs_or_fails_is_unavailable(store: Store) -> None:
    gate = threading.Event()
    Store.faults[:] = [gate] * 9
    with pytest.raises(SourceUnavailableError, match="no answer within"):
        await fetch(patience=HASTY)
    gate.set()
    Store.faults[:] = [ConnectionError("reset")] * 3
    with pytest.raises(SourceUnavailableError, match="reset"):
        await fetch()
    assert (await fetch()).weights == SAMPLE.weights


async def test_a_store_that_cannot_be_opened_or_searched_now_is_unavailable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def fail(scheme: str) -> Any:
        opened.append(scheme)
        raise ConnectionError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "_file_system", fail)
        with pytest.raises(SourceUnavailableError, match=r"3 times in a row.*no route"):
            await fetch()
    assert opened == ["s3"] * 3
    store.rm_file(f"{URI}/{WEIGHTS_NAME}")
    monkeypatch.setattr(Store, "exists", lambda _store, path: fail(path))
    with pytest.raises(SourceUnavailableError, match=r"3 times in a row.*no route"):
        await fetch()


async def test_content_that_changes_in_between_is_begun_afresh(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = bytes(files(2).weights)
    honest = Store.cat_file

    def swap(self: Store, path: str, **fields: Any) -> bytes:
        found = honest(self, path, **fields)
        if fields["start"] == 500 and not Store.versions:
            store.pipe_file(f"{URI}/{WEIGHTS_NAME}", newer)
            Store.versions[Store._strip_protocol(path)] = 1
        return found

    monkeypatch.setattr(Store, "cat_file", swap)
    assert (await fetch()).weights == newer


async def test_refusals(store: Store) -> None:
    with pytest.raises(SourceNotAllowedError, match="--allow-source s3://bucket"):
        await fetch("s3://bucket/other")
    with pytest.raises(SourceNotFoundError):
        await fetch(f"{URI}/nothing")
    with pytest.raises(AdapterTooLargeError):
        await fetch(limits=AdapterLimits(max_weights_bytes=100))
    Store.faults[:] = [PermissionError("Access Denied")]
    with pytest.raises(SourceAccessError, match="credentials"):
        await fetch()
    made = build_router(SourceOptions(allowed=["s3://*"]))
    with pytest.raises(UnsupportedSchemeError) as caught:
        await made.fetch(URI, Access("token"))
    assert caught.value.reason == "TOKEN_UNSUPPORTED"
    store.rm_file(f"{URI}/{WEIGHTS_NAME}")
    store.pipe_file(f"{URI}/adapter_model.bin", b"\x80\x02")
    with pytest.raises(PickleRefusedError):
        await fetch()


async def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str) -> Any:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(bucket, "_file_system", missing)
    with pytest.raises(SourceExtraMissingError, match=r"pip install 'chorale\[gs\]'"):
        await fetch("gs://bucket/a", allowed=["gs://bucket"])
