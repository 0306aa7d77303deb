import asyncio
import errno
import json
import os
import socket
import tracemalloc
from pathlib import Path
from urllib.parse import quote

import pytest

from storage.errors import (
    AdapterTooLargeError,
    BadWeightsError,
    OutsideRootsError,
    PickleRefusedError,
    SourceError,
    SourceNotFoundError,
    SourceUnreadableError,
    UnsupportedSchemeError,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.limits import AdapterLimits
from storage.sources import ANYBODY, Access, LocalDirectorySource, SourceRouter, local
from tests.helpers.waiting import eventually


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def write_adapter(directory: Path, config: bytes = b"{}", weights: bytes = b"weights") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_NAME).write_bytes(config)
    (directory / WEIGHTS_NAME).write_bytes(weights)
    return directory


async def refusal(source: LocalDirectorySource, uri: str) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await asyncio.wait_for(source.fetch(uri), 30)
    assert len(caught.value.message) < 600
    return caught.value


async def test_reads_a_path_and_a_file_uri(root: Path) -> None:
    directory = write_adapter(root / "a b%20c#?é")
    source = LocalDirectorySource([root])
    for uri in (
        str(directory),
        f"file://{quote(str(directory))}",
        f"FILE://localhost{quote(str(directory))}/",
        f"{directory}/../{directory.name}",
    ):
        files = await source.fetch(uri)
        assert (files.config, files.weights, files.uri) == (b"{}", b"weights", uri)


async def test_a_root_itself_may_be_an_adapter(root: Path) -> None:
    write_adapter(root)
    assert (await LocalDirectorySource([root]).fetch(str(root))).weights == b"weights"


async def test_links_are_followed_within_the_roots(root: Path, tmp_path: Path) -> None:
    # As in a hub cache: the snapshot's files are links to blobs elsewhere under the root.
    blobs = write_adapter(root / "blobs")
    snapshot = root / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    (root / "latest").symlink_to(snapshot)
    alias = tmp_path / "alias"
    alias.symlink_to(root)
    for source in (LocalDirectorySource([root]), LocalDirectorySource([alias])):
        assert (await source.fetch(str(alias / "latest"))).weights == b"weights"
    assert blobs.exists()


async def test_nothing_outside_the_roots_is_read(root: Path, tmp_path: Path) -> None:
    outside = write_adapter(tmp_path / "outside")
    sibling = write_adapter(tmp_path / "root-sibling")
    (root / "link").symlink_to(outside)
    partly = root / "partly"
    partly.mkdir()
    (partly / CONFIG_NAME).write_bytes(b"{}")
    (partly / WEIGHTS_NAME).symlink_to(outside / WEIGHTS_NAME)
    source = LocalDirectorySource([root])
    for path in (
        str(outside),
        str(sibling),
        str(root / "link"),
        str(partly),
        f"{root}/../outside",
        f"file://{root}/%2e%2e/outside",
        str(tmp_path / "does-not-exist"),
        "/",
    ):
        error = await refusal(source, path)
        assert isinstance(error, OutsideRootsError), path
        assert "--adapter-root" in error.message
    assert isinstance(await refusal(LocalDirectorySource([]), str(root)), OutsideRootsError)


async def test_a_link_put_there_between_check_and_open_is_not_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_adapter(root / "deep" / "a")
    secret = write_adapter(tmp_path / "secret" / "a", weights=b"secret")
    source = LocalDirectorySource([root])
    honest = local._open_beneath

    def swapped(base: Path, parts: tuple[str, ...]) -> int:
        if (root / "deep").is_dir() and not (root / "deep").is_symlink():
            (root / "deep").rename(root / "moved")
            (root / "deep").symlink_to(secret.parent)
        return honest(base, parts)

    monkeypatch.setattr(local, "_open_beneath", swapped)
    error = await refusal(source, str(directory))
    assert isinstance(error, SourceUnreadableError | SourceNotFoundError)


@pytest.mark.parametrize(
    "uri",
    [
        "relative/dir",
        "./a",
        "~/a",
        "",
        "org/name",
        "file://otherhost/a",
        "file://relative",
        "file://",
        "file:///a?x=1",
        "file:///a#x",
        "file:///a%00b",
        "/a\x00b",
        "file:///%ff%fe",
        "file://[::1/a",
        "/" + "a" * 5000,
        "\ud800",
        "/\ud800",
    ],
)
async def test_bad_addresses_are_refused(root: Path, uri: str) -> None:
    error = await refusal(LocalDirectorySource([Path("/")]), uri)
    assert error.reason == "SOURCE_UNREADABLE"


async def test_missing_things_are_named(root: Path) -> None:
    source = LocalDirectorySource([root])
    (root / "empty").mkdir()
    assert (await refusal(source, str(root / "absent"))).reason == "SOURCE_NOT_FOUND"
    error = await refusal(source, str(root / "empty"))
    assert isinstance(error, SourceNotFoundError)
    assert CONFIG_NAME in error.message
    (root / "empty" / CONFIG_NAME).write_bytes(b"{}")
    error = await refusal(source, str(root / "empty"))
    assert WEIGHTS_NAME in error.message
    (root / "file").write_bytes(b"")
    assert "not a directory" in (await refusal(source, str(root / "file"))).message


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
async def test_pickle_is_never_an_alternative(root: Path, name: str) -> None:
    directory = root / "a"
    directory.mkdir()
    (directory / CONFIG_NAME).write_bytes(b"{}")
    (directory / name).write_bytes(b"\x80\x02")
    with pytest.raises(PickleRefusedError, match="safetensors") as caught:
        await LocalDirectorySource([root]).fetch(str(directory))
    assert caught.value.metadata == {"file": name}


async def test_pickle_beside_safetensors_is_ignored(root: Path) -> None:
    directory = write_adapter(root / "a")
    (directory / "adapter_model.bin").write_bytes(b"\x80\x02")
    assert (await LocalDirectorySource([root]).fetch(str(directory))).weights == b"weights"


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "loop"])
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
async def test_only_regular_files_are_read(root: Path, kind: str, name: str) -> None:
    path = write_adapter(root / "a") / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(path.parent)  # socket paths are short
            try:
                server.bind(path.name)
            finally:
                os.chdir(here)
    error = await refusal(LocalDirectorySource([root]), str(path.parent))
    assert error.reason == "SOURCE_UNREADABLE"


def test_device_files_are_refused() -> None:
    source = LocalDirectorySource([Path("/dev")])
    with pytest.raises(SourceError, match="not a regular file"):
        source._read(Path("/dev"), "zero", 100, lambda _: None)


async def test_size_is_checked_before_reading(root: Path) -> None:
    directory = write_adapter(root / "a")
    with (directory / WEIGHTS_NAME).open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would not end well
    with pytest.raises(AdapterTooLargeError) as caught:
        await LocalDirectorySource([root]).fetch(str(directory))
    assert caught.value.metadata["size_bytes"] == str(1 << 40)
    write_adapter(directory, config=b"{}" * 51)
    with pytest.raises(AdapterTooLargeError, match="limit is 101"):
        await LocalDirectorySource([root], AdapterLimits(max_config_bytes=101)).fetch(
            str(directory)
        )


async def test_what_the_system_refuses_is_typed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_adapter(root / "a")

    def refuse(base: Path, parts: tuple[str, ...]) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(local, "_open_beneath", refuse)
    error = await refusal(LocalDirectorySource([root]), str(directory))
    assert error.reason == "SOURCE_UNREADABLE"
    assert "Permission denied" in error.message


async def test_no_descriptor_is_left_open(root: Path) -> None:
    directory = write_adapter(root / "a")
    source = LocalDirectorySource([root], AdapterLimits(max_config_bytes=3))
    before = len(os.listdir("/proc/self/fd"))
    for round_ in range(6):
        (directory / CONFIG_NAME).write_bytes(b"{}" if round_ % 2 else b"{    }")
        task = asyncio.create_task(source.fetch(str(directory)))
        await asyncio.sleep(0.001 * round_)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: len(os.listdir("/proc/self/fd")) == before)


class Fixed:
    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        return AdapterFiles(b"c", b"w", uri)


async def test_router_picks_by_scheme_and_lists_what_it_has() -> None:
    router = SourceRouter({"file": Fixed(), "s3": Fixed()})
    for uri in ("/plain/path", "file:///x", "S3://bucket/x", "a:b"):
        assert (await router.fetch(uri)).uri == uri
    for uri in ("hf://org/name", "http://127.0.0.1/x"):
        with pytest.raises(UnsupportedSchemeError, match="file://, s3://") as caught:
            await router.fetch(uri)
        assert caught.value.reason == "UNSUPPORTED_SCHEME"


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://name:secret@host/x",
        "ftp://host/x?key=secret",
        "file://name:secret@host/x",
        "file:///x?key=secret",
        "https:/name:secret@host/x",
        "https:name:secret@host/x",
    ],
)
async def test_no_refusal_repeats_a_password(uri: str, root: Path) -> None:
    source = SourceRouter({"file": LocalDirectorySource([root])})
    with pytest.raises(SourceError) as caught:
        await source.fetch(uri)
    assert "secret" not in caught.value.message + str(caught.value.metadata)
    assert uri[:4] in caught.value.message


async def test_a_header_that_promises_less_than_the_file_spares_its_room(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_UNSEEN_BYTES", 1 << 20)
    size = 256 << 20
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    sound = json.dumps({"a": entry}).encode()
    whole = {**entry, "shape": [(2 << 20) - 2], "data_offsets": [0, (8 << 20) - 8]}
    exact = json.dumps({"a": whole}).encode().ljust(100)
    source = LocalDirectorySource([root])
    for header, told in ((b"", "begin"), (sound, "truncated or padded"), (b"{" * 99, "JSON")):
        write_adapter(root, weights=len(header).to_bytes(8, "little") + header)
        os.truncate(root / WEIGHTS_NAME, size)
        tracemalloc.start()
        try:
            with pytest.raises(BadWeightsError, match=told):
                await source.fetch(str(root))
            assert tracemalloc.get_traced_memory()[1] < size // 16
        finally:
            tracemalloc.stop()
    write_adapter(root, weights=len(exact).to_bytes(8, "little") + exact)
    os.truncate(root / WEIGHTS_NAME, (8 << 20) + len(exact))
    files = await source.fetch(str(root))
    assert bytes(files.weights[8:108]) == exact and len(files.weights) == (8 << 20) + 100


async def test_a_file_takes_the_room_that_it_has(root: Path) -> None:
    size = 32 << 20
    write_adapter(root)
    os.truncate(root / WEIGHTS_NAME, size)
    tracemalloc.start()
    try:
        files = await LocalDirectorySource([root]).fetch(str(root))
        assert len(files.weights) == size
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [3, 9])
async def test_a_file_that_changes_meanwhile_is_refused(root: Path, size: int) -> None:
    write_adapter(root, weights=b"1234567")

    source, real = LocalDirectorySource([root]), os.fstat
    told: list[int] = []

    def stale(fd: int) -> os.stat_result:
        found = real(fd)
        told.append(found.st_size)
        if told.count(7) == 2:  # of what it is, and of how much
            os.truncate(root / WEIGHTS_NAME, size)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        error = await refusal(source, str(root))
    assert isinstance(error, SourceUnreadableError) and "changed" in str(error)
