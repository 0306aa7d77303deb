"""A registry that is lost and restored: the real control plane under the real commands."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chorale import Client
from controlplane.cli.app import app
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import running
from tests.helpers.redis import redis_server, redis_url, send
from tests.helpers.waiting import PATIENCE_S

__all__ = ["redis_server", "redis_url"]

Chorale = Callable[..., Any]


@pytest.fixture
def address(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """A control plane in a thread of its own, a data plane of its base model joined."""
    ready, stop = threading.Event(), threading.Event()
    found: list[Any] = []

    async def serve() -> None:
        async with running(redis_url, adapter_roots=[tmp_path], lease_s=600.0) as plane:
            await plane.join(max_running=4)
            found.extend([plane.address, asyncio.get_running_loop(), plane])
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(PATIENCE_S)
    rejoin.update(plane=found[2], loop=found[1])
    yield found[0]
    stop.set()
    thread.join()


rejoin: dict[str, Any] = {}


@pytest.fixture
def chorale(address: str) -> Chorale:
    def run(*arguments: str, **options: Any) -> Any:
        return CliRunner().invoke(app, list(arguments), env={"CHORALE_ADDRESS": address}, **options)

    return run


def lose_everything(server: EmbeddedRedis) -> None:
    assert send(server, "FLUSHALL") == b"+OK\r\n"
    joining = asyncio.run_coroutine_threadsafe(rejoin["plane"].join(max_running=4), rejoin["loop"])
    joining.result(PATIENCE_S)


def fill(address: str, tmp_path: Path) -> None:
    """`voice` with versions 2 and 4, 2 being current; `team/other`; two aliases."""
    with Client(address) as client:
        for seed in (1, 2, 3, 4):
            source = make_adapter_dir(tmp_path / str(seed), seed=seed)
            client.adapters.register("voice", str(source), labels={"seed": str(seed), "ü": "é"})
        client.adapters.promote("voice", 2)
        for version in (1, 3):
            client.adapters.remove("voice", version=version)
        client.adapters.register("team/other", str(tmp_path / "1"))
        client.adapters.set_alias("prod", "voice", version=4)
        client.adapters.set_alias("canary", targets={"voice": 95, "voice@4": 0, "team/other@1": 5})


def listing(chorale: Chorale) -> Any:
    """Of all adapters, without the times of registration."""
    listed = json.loads(chorale("adapters", "list", "--json").stdout)["adapters"]
    for adapter in listed:
        for version in adapter["versions"]:
            del version["created_at"]
    return listed


def test_a_lost_registry_comes_back(
    chorale: Chorale, address: str, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(address, tmp_path)
    before, file = listing(chorale), tmp_path / "registry.jsonl"
    said = chorale("adapters", "export", str(file))
    assert said.stdout == f"4 adapters and aliases are in {file}\n"
    assert chorale("adapters", "export", "-").stdout == file.read_text()
    unchanged = chorale("adapters", "import", str(file))
    assert unchanged.stdout == "4 adapters and aliases: 4 unchanged\n"
    lose_everything(redis_server)
    assert listing(chorale) == []
    done = chorale("adapters", "import", str(file))
    assert (done.exit_code, done.stdout) == (0, "4 adapters and aliases: 4 added\n")
    assert listing(chorale) == before
    with Client(address) as client:  # numbers go on where they were
        added = client.adapters.register("voice", str(tmp_path / "1"))
        assert added.version.version == 5


def test_what_has_changed_is_not_restored_as_something_else(
    chorale: Chorale, address: str, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    fill(address, tmp_path)
    file = tmp_path / "registry.jsonl"
    chorale("adapters", "export", str(file))
    lose_everything(redis_server)
    make_adapter_dir(tmp_path / "2", seed=99)
    done = chorale("adapters", "import", str(file))
    assert done.exit_code == 4
    assert "DIGEST_MISMATCH" in done.stdout and "version 2" in done.stdout
    versions = {each["name"]: each["versions"] for each in listing(chorale)}
    assert [version["version"] for version in versions["voice"]] == [4]
    make_adapter_dir(tmp_path / "2", seed=2)
    again = chorale("adapters", "import", str(file))
    assert again.exit_code == 0, again.stdout
    (voice,) = [each for each in listing(chorale) if each["name"] == "voice"]
    assert [version["version"] for version in voice["versions"]] == [4, 2]
    assert voice["current_version"] == 2


def test_import_leaves_what_is_not_in_the_file(
    chorale: Chorale, address: str, tmp_path: Path
) -> None:
    fill(address, tmp_path)
    file = tmp_path / "registry.jsonl"
    chorale("adapters", "export", str(file))
    with Client(address) as client:
        client.adapters.register("newer", str(tmp_path / "3"))
        client.adapters.promote("voice", 4)
        client.adapters.set_alias("prod", "newer")
    assert "2 added, 2 unchanged" in chorale("adapters", "import", str(file)).stdout
    by_name = {each["name"]: each for each in listing(chorale)}
    assert set(by_name) == {"newer", "voice", "team/other"}
    assert by_name["voice"]["current_version"] == 2
    assert not by_name["newer"]["aliases"]


HEAD = '{"kind":"file","format":"chorale-adapters","version":1}\n'
VERSION = '{"version":1,"digest":"d","source":"/s","base_model":"b"}'
ADAPTER = f'{{"kind":"adapter","name":"a","current":1,"versions":[{VERSION}]}}\n'
ALIAS = '{"kind":"alias","name":"z","targets":[{"adapter":"a","weight":2}]}\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1 is missing"),
        (ADAPTER, "line 1 does not say"),
        (HEAD.replace('"version":1', '"version":2'), "version 2"),
        (HEAD + ADAPTER[:-1], "line 2 is cut off"),
        (HEAD + ADAPTER + "{}\n", "line 3 is none of an export"),
        (HEAD + ADAPTER.replace('"a"', "7"), "line 2 is none"),
        (HEAD + ADAPTER.replace("}", ',"more":1}'), "line 2 is none"),
        (HEAD + ADAPTER.replace('"current":1', '"current":-1'), "line 2 is none"),
        (HEAD + ADAPTER.replace('"version":1', '"version":0'), "line 2 is none"),
        (HEAD + ADAPTER.replace('"version":1', '"version":4294967296'), "line 2 is none"),
        (HEAD + ADAPTER.replace(VERSION, ""), "line 2 is none"),
        (HEAD + ADAPTER.replace(VERSION, f"{VERSION},{VERSION}"), "line 2 names a version twice"),
        (HEAD + ALIAS.replace('"weight":2', '"weight":-2'), "line 2 is none"),
        (HEAD + ALIAS.replace('{"adapter":"a","weight":2}', ""), "line 2 is none"),
        (HEAD + ALIAS.replace("[", '[{"adapter":"a"},'), "line 2 names a target twice"),
        (HEAD + ADAPTER + ADAPTER, "twice"),
        (HEAD + HEAD, "line 2 is of"),
        (HEAD.replace('"version":1', f'"version":{"9" * 4000}'), "line 1 is none"),
        (HEAD + ADAPTER.replace('"name":"a"', '"name":"\udcff"'), "line 2 is none"),
        (HEAD + '{"more":' + "[" * 9999 + "]" * 9999 + ',"kind":"adapter"}\n', "line 2 is none"),
    ],
)
def test_a_file_that_is_none_changes_nothing(
    chorale: Chorale, tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "x").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused = chorale("adapters", "import", str(tmp_path / "x"))
    assert refused.exit_code == 2 and problem in refused.stderr
    assert listing(chorale) == []


def test_files_that_cannot_be_read_or_written(chorale: Chorale, tmp_path: Path) -> None:
    assert chorale("adapters", "import", str(tmp_path / "none")).exit_code == 3
    written = chorale("adapters", "export", str(tmp_path / "none" / "x"))
    assert written.exit_code == 4 and "FILE_UNWRITABLE" in written.stderr


def test_what_is_no_file_is_written_to_and_stays_what_it_is(
    chorale: Chorale, address: str, tmp_path: Path
) -> None:
    fill(address, tmp_path)
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    link.symlink_to(target)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_text)
        written = chorale("adapters", "export", str(pipe))
        assert written.exit_code == 0 and pipe.is_fifo()
        assert read.result(PATIENCE_S).startswith(HEAD)
    begin, end = os.pipe()  # as a shell's, named /dev/stdout or /dev/fd/N
    assert chorale("adapters", "export", f"/dev/fd/{end}").exit_code == 0
    assert os.read(begin, 65_536).decode().startswith(HEAD)
    os.close(begin)
    os.close(end)
    assert chorale("adapters", "export", str(link)).exit_code == 0
    assert link.is_symlink() and target.read_text().startswith(HEAD)
