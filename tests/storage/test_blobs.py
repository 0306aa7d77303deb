from __future__ import annotations

import asyncio
import dataclasses
import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from storage import blobs
from storage.adapter.manifest import digest_of
from storage.blobs import BlobStore
from storage.errors import (
    AdapterFormatError,
    AdapterTooLargeError,
    BlobQuotaError,
    BlobWriteError,
    SourceNotFoundError,
    SourceUnreadableError,
    UploadBusyError,
    UploadDamagedError,
    UploadError,
    UploadOffsetError,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.limits import AdapterLimits
from storage.upload import Upload, UploadHeader
from tests.storage.samples import config, files

SAMPLES = [files(seed) for seed in range(4)]
DIGESTS = [digest_of(one.config, one.weights) for one in SAMPLES]
SIZE = max(one.size_bytes for one in SAMPLES)
ROOM = SIZE + (16 << 10)  # with what a directory takes


def header_of(sample: AdapterFiles, weights: bytes | None = None) -> UploadHeader:
    data = bytes(sample.weights) if weights is None else weights
    return UploadHeader(sample.config, len(data), hashlib.sha256(data).digest())


async def upload(store: BlobStore, sample: AdapterFiles, upto: int | None = None) -> str:
    """Goes on where the store says; stops before byte `upto`, as a broken call does."""
    header = header_of(sample)
    offset = await store.offset(header)
    async with store.upload(header, offset) as one:
        data = bytes(sample.weights)[offset:upto]
        for begin in range(0, len(data), 700):
            await one.write(data[begin : begin + 700])
        return "" if upto is not None else await one.finish()


def used(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "blobs").glob("*/*"))


async def test_an_upload_becomes_a_blob(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, ROOM * 10)
    assert await upload(store, SAMPLES[0]) == DIGESTS[0]
    found = await store.fetch(f"blob:{DIGESTS[0]}")
    assert (found.config, found.weights) == (SAMPLES[0].config, SAMPLES[0].weights)
    assert found.uri == f"blob:{DIGESTS[0]}"
    again = BlobStore(tmp_path, ROOM * 10)
    assert (await again.fetch(f"blob:{DIGESTS[0]}")).weights == SAMPLES[0].weights
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_it_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    sample = SAMPLES[0]
    assert await upload(BlobStore(tmp_path, ROOM * 10), sample, upto=900) == ""
    store = BlobStore(tmp_path, ROOM * 10)  # another process, later
    assert await store.offset(header_of(sample)) == 900
    assert await store.offset(header_of(SAMPLES[1])) == 0
    with pytest.raises(UploadOffsetError) as caught:
        async with store.upload(header_of(sample), 0):
            pass
    assert caught.value.metadata["offset"] == "900"
    assert await upload(store, sample) == DIGESTS[0]


async def test_uploading_again_sends_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, ROOM * 10)
    await upload(store, SAMPLES[0])
    header = header_of(SAMPLES[0])
    assert await store.offset(header) == header.weights_bytes
    assert await upload(store, SAMPLES[0]) == DIGESTS[0]
    # The same content under another spelling is the same blob.
    other = AdapterFiles(SAMPLES[0].config + b" ", SAMPLES[0].weights, "")
    assert await store.offset(header_of(other)) == 0
    assert await upload(store, other) == DIGESTS[0]
    assert len(list((tmp_path / "blobs").iterdir())) == 1


async def test_the_latest_configuration_of_a_blob_counts(tmp_path: Path) -> None:
    """The base model's name is no part of the digest, and decides what a blob is registered for."""
    store = BlobStore(tmp_path, ROOM * 10)
    named = [
        dataclasses.replace(SAMPLES[0], config=config(base_model_name_or_path=name))
        for name in ("typing/eror", "typing/error")
    ]
    for sample in (*named, named[0], named[0]):  # the last two are known as they are announced
        assert await upload(store, sample) == DIGESTS[0]
        assert (await store.fetch(f"blob:{DIGESTS[0]}")).config == sample.config
    assert sorted(os.listdir(tmp_path / "blobs" / DIGESTS[0])) == [CONFIG_NAME, WEIGHTS_NAME]
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_one_call_at_a_time_writes_an_upload(tmp_path: Path) -> None:
    store, other = BlobStore(tmp_path, ROOM * 10), BlobStore(tmp_path, ROOM * 10)
    header = header_of(SAMPLES[0])
    async with store.upload(header, 0):
        with pytest.raises(UploadBusyError):
            async with other.upload(header, 0):
                pass
        await upload(other, SAMPLES[1])
    assert await upload(other, SAMPLES[0]) == DIGESTS[0]


async def test_an_upload_that_another_call_has_just_finished_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reservation would count for a day."""
    store = BlobStore(tmp_path, ROOM * 10)
    await upload(store, SAMPLES[0])
    answers = [None, DIGESTS[0]]
    monkeypatch.setattr(store, "_finished", lambda _: answers.pop(0))
    header = header_of(SAMPLES[0])
    with pytest.raises(UploadOffsetError) as caught:
        async with store.upload(header, 0):
            pass
    assert caught.value.metadata["offset"] == str(header.weights_bytes)
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_damage_on_the_way_is_seen_and_begun_afresh(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, ROOM * 10)
    header = header_of(SAMPLES[0])
    with pytest.raises(UploadDamagedError):
        async with store.upload(header, 0) as one:
            await one.write(b"x" * header.weights_bytes)
            await one.finish()
    assert await store.offset(header) == 0
    assert await upload(store, SAMPLES[0]) == DIGESTS[0]


async def test_only_sound_adapters_become_blobs(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, ROOM * 10)
    weights = b"no safetensors at all"
    header = header_of(SAMPLES[0], weights)
    with pytest.raises(AdapterFormatError):
        async with store.upload(header, 0) as one:
            await one.write(weights)
            await one.finish()
    with pytest.raises(AdapterFormatError):
        await store.offset(UploadHeader(b"{", 100, bytes(32)))
    with pytest.raises(AdapterFormatError):
        async with store.upload(UploadHeader(config(r=0), 100, bytes(32)), 0):
            pass
    for part in ("blobs", "uploads"):
        assert list((tmp_path / part).iterdir()) == []


async def test_announced_sizes_hold(tmp_path: Path) -> None:
    limits = AdapterLimits(max_weights_bytes=len(SAMPLES[0].weights))
    store = BlobStore(tmp_path, ROOM * 10, limits)
    header = header_of(SAMPLES[0])
    with pytest.raises(AdapterTooLargeError):
        await store.offset(header_of(SAMPLES[0], bytes(SAMPLES[0].weights) + b"x"))
    for bad in (
        UploadHeader(header.config, header.weights_bytes, b"short"),
        UploadHeader(header.config, 0, header.weights_sha256),
    ):
        with pytest.raises(UploadError):
            await store.offset(bad)
    with pytest.raises(UploadError, match="announced"):
        async with store.upload(header, 0) as one:
            await one.write(bytes(header.weights_bytes + 1))
    with pytest.raises(UploadOffsetError, match="send the rest"):
        async with store.upload(header, 0) as one:
            await one.write(b"x")
            await one.finish()
    async with store.upload(header, 1) as one:  # what came is kept
        await one.write(b"y")


async def test_the_quota_counts_what_is_under_way(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, ROOM * 2)
    await upload(store, SAMPLES[0])
    await upload(store, SAMPLES[1], upto=100)
    with pytest.raises(BlobQuotaError) as caught:
        await upload(store, SAMPLES[2])
    assert caught.value.reason == "BLOB_QUOTA_EXCEEDED"
    await upload(store, SAMPLES[1])  # what was begun may end
    assert used(tmp_path) <= SIZE * 2


async def test_only_what_is_old_and_nameless_is_collected(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, ROOM * 3)
    for sample in SAMPLES[:2]:
        await upload(store, sample)
    await upload(store, SAMPLES[2], upto=100)
    assert await store.collect([]) == 0
    long_ago = time.time() - 90_000
    for path in (tmp_path / "blobs").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert await store.collect([DIGESTS[0]]) == 1
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [DIGESTS[0]]
    assert await store.offset(header_of(SAMPLES[1])) == 0
    await store.fetch(f"blob:{DIGESTS[0]}")  # a use, after which it is not old
    assert await store.collect([]) == 0


async def test_an_upload_that_was_given_up_leaves_its_room_soon(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, ROOM * 3)
    header = header_of(SAMPLES[0])
    await upload(store, SAMPLES[0], upto=100)
    (directory,) = (tmp_path / "uploads").iterdir()
    soon = time.time() - 1000
    os.utime(directory, (soon, soon))
    assert await store.collect([]) == 0, "something has come since"
    os.utime(directory / WEIGHTS_NAME, (soon, soon))
    async with store.upload(header, 100):  # somebody sends it
        os.utime(directory, (soon, soon))
        assert await store.collect([]) == 0
    os.utime(directory, (soon, soon))
    assert await store.collect([]) == 1
    assert await store.offset(header) == 0


async def test_files_are_read_from_any_offset(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, ROOM * 10)
    await upload(store, SAMPLES[0])
    weights = bytes(SAMPLES[0].weights)
    for offset in (0, 1, len(weights) - 1, len(weights)):
        pieces = [piece async for piece in store.stream(DIGESTS[0], WEIGHTS_NAME, offset)]
        assert b"".join(data for _, data in pieces) == weights[offset:]
        assert {size for size, _ in pieces} == {len(weights)}
    with pytest.raises(SourceUnreadableError, match="beyond"):
        await anext(aiter(store.stream(DIGESTS[0], CONFIG_NAME, 1 << 30)))


@pytest.mark.parametrize("digest", ["", "..", "A" * 64, "../" + "a" * 61, "a" * 63 + "/"])
async def test_only_digests_become_paths(tmp_path: Path, digest: str) -> None:
    store = BlobStore(tmp_path, ROOM)
    with pytest.raises(SourceUnreadableError):
        await store.fetch(f"blob:{digest}")


async def test_missing_blobs_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="--upload"):
        await BlobStore(tmp_path, ROOM).fetch(f"blob:{'a' * 64}")


async def test_many_uploads_at_once_keep_the_quota(tmp_path: Path) -> None:
    stores = [BlobStore(tmp_path, ROOM * 2) for _ in range(4)]
    results = await asyncio.gather(
        *(upload(store, sample) for store, sample in zip(stores, SAMPLES, strict=True)),
        return_exceptions=True,
    )
    done = [result for result in results if isinstance(result, str)]
    assert len(done) == 2
    assert all(isinstance(r, BlobQuotaError) for r in results if not isinstance(r, str))
    assert used(tmp_path) <= SIZE * 2


async def test_a_full_disk_is_typed_and_the_upload_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path, ROOM * 10)
    with monkeypatch.context() as patch:
        patch.setattr(Upload, "write", _no_room)
        with pytest.raises(BlobWriteError, match="No space left") as caught:
            await upload(store, SAMPLES[0])
    assert caught.value.reason == "BLOB_WRITE_FAILED"
    assert await upload(store, SAMPLES[0]) == DIGESTS[0]


async def _no_room(_upload: Upload, _data: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_uploads_of_a_few_bytes_are_bounded_by_the_quota(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, 160 << 10)
    assert len(SAMPLES[0].config) < 1 << 10
    begun = 0
    with pytest.raises(BlobQuotaError):
        for begun in range(100):
            async with store.upload(UploadHeader(SAMPLES[0].config, 8, bytes([begun] * 32)), 0):
                pass
    assert begun == 9


async def test_what_is_remembered_of_uploads_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_MAX_DONE", 3)
    store = BlobStore(tmp_path, ROOM * 3)
    gone = tmp_path / "done" / "gone"
    gone.symlink_to("nowhere")  # as what is removed while they are counted
    spelled = [
        AdapterFiles(SAMPLES[0].config + b" " * blanks, SAMPLES[0].weights, "")
        for blanks in range(5)
    ]
    for sample in spelled:
        assert await upload(store, sample) == DIGESTS[0]
    gone.unlink()
    assert len(list((tmp_path / "done").iterdir())) == 3
    assert await store.offset(header_of(spelled[-1])) == len(SAMPLES[0].weights)


@pytest.mark.parametrize("damage", ["bit", "cut", "weights", "config"])
async def test_a_blob_damaged_at_rest_is_mended_by_uploading_it_again(
    tmp_path: Path, damage: str
) -> None:
    store = BlobStore(tmp_path, ROOM * 3)
    sample = SAMPLES[0]
    await upload(store, sample)
    entry = tmp_path / "blobs" / DIGESTS[0]
    if damage == "bit":
        data = bytearray(sample.weights)
        data[-1] ^= 1
        (entry / WEIGHTS_NAME).write_bytes(data)
    elif damage == "cut":
        os.truncate(entry / WEIGHTS_NAME, 0)
    else:
        (entry / {"weights": WEIGHTS_NAME, "config": CONFIG_NAME}[damage]).unlink()
    with pytest.raises(UploadOffsetError) as caught:  # it seems to be there
        await upload(store, sample)
    assert caught.value.metadata["offset"] == "0"
    assert await upload(store, sample) == DIGESTS[0]
    found = await store.fetch(f"blob:{DIGESTS[0]}")
    assert (found.config, found.weights) == (sample.config, sample.weights)
    assert list((tmp_path / "uploads").iterdir()) == []
    # Another spelling is an upload of its own, which finds the damaged blob in its place.
    os.truncate(entry / WEIGHTS_NAME, 9)
    other = AdapterFiles(sample.config + b" ", sample.weights, "")
    assert await upload(store, other) == DIGESTS[0]
    assert (await store.fetch(f"blob:{DIGESTS[0]}")).weights == sample.weights
