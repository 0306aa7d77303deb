"""`chorale keys`, and the options by which commands show a key and trust an authority."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chorale.v1 import adapter_registry_pb2 as registry_pb
from controlplane.cli.app import app
from controlplane.gateway.access.key_file import read_keys
from controlplane.gateway.access.scope import Scope
from tests.cli.conftest import Chorale
from tests.helpers.api_keys import entry, write_keys
from tests.helpers.scripted_gateway import ScriptedGateway


def keys(*arguments: str, file: Path):
    return CliRunner().invoke(app, ["keys", *arguments, "--file", str(file)])


def test_new(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first = keys("new", "ci", "--tenant", "acme", file=file)
    assert first.exit_code == 0, first.stderr
    key = first.stdout.strip()
    assert len(key) > 40 and key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    many = ["--scope", "manage", "--scope", "generate", "--expires-in", "2"]
    second = keys("new", "ops", "--tenant", "*", *many, file=file).stdout.strip()
    assert second != key
    found, ops = read_keys(file).find(key), read_keys(file).find(second)
    assert found is not None and ops is not None
    assert (found.name, found.tenant, list(found.scopes)) == ("ci", "acme", [Scope.GENERATE])
    assert found.expires is None and not found.has_ended()
    assert (ops.tenant, set(ops.scopes)) == ("*", {Scope.MANAGE, Scope.GENERATE})
    assert ops.expires is not None
    assert timedelta(days=1.9) < ops.expires - datetime.now(UTC) <= timedelta(days=2)
    assert ops.has_ended(ops.expires)


def test_list_and_remove(tmp_path: Path) -> None:
    ended = entry("old", expires="2020-01-01T00:00:00Z")
    file = write_keys(tmp_path / "keys.json", entry("ci"), ended)
    file.chmod(0o640)
    shown = keys("list", file=file).stdout
    for text in ("ci", "acme", "never", "2020-01-01 00:00 UTC (ended)"):
        assert text in shown
    views = json.loads(keys("list", "--json", file=file).stdout)["keys"]
    assert views[1] == {
        "name": "old",
        "tenant": "acme",
        "scopes": ["generate"],
        "expires": "2020-01-01T00:00:00+00:00",
        "has_ended": True,
    }
    assert keys("remove", "old", file=file).stdout == "removed old\n"
    assert [each.name for each in read_keys(file).entries] == ["ci"]
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_a_changed_file_can_be_read_by_whom_it_could_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda _, *owner: owners.append(owner))
    file = write_keys(tmp_path / "keys.json", entry("ci"))
    file.chmod(0o644)
    umask = os.umask(0o077)
    try:
        assert keys("new", "x", "--tenant", "a", file=file).exit_code == 0
    finally:
        os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o644
    assert owners == [(file.stat().st_uid, file.stat().st_gid)]


def test_of_a_link_the_file_behind_is_changed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file = write_keys(tmp_path / "there" / "keys.json", entry("ci"))
    link = tmp_path / "keys.json"
    link.symlink_to(file)
    assert keys("new", "x", "--tenant", "a", file=link).exit_code == 0
    assert link.is_symlink()
    assert [each.name for each in read_keys(file).entries] == ["ci", "x"]


def test_refusals(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys.json", entry("ci"))
    before = file.read_bytes()
    for arguments, reason, code in (
        (("new", "ci", "--tenant", "a"), "API_KEY_EXISTS", 2),
        (("new", "x", "--tenant", "two words"), "API_KEY_ENTRY_INVALID", 2),
        (("new", "x\n", "--tenant", "a"), "API_KEY_ENTRY_INVALID", 2),
        (("remove", "none"), "API_KEY_NOT_FOUND", 3),
    ):
        result = keys(*arguments, file=file)
        assert (result.exit_code, reason in result.stderr) == (code, True), arguments
    assert file.read_bytes() == before
    missing = tmp_path / "none.json"
    for arguments in (("list",), ("remove", "x")):
        assert keys(*arguments, file=missing).exit_code == 3
        assert not missing.exists()
    file.write_text("{")
    result = keys("new", "x", "--tenant", "a", file=file)
    assert (result.exit_code, "API_KEYS_FILE_INVALID" in result.stderr) == (2, True)
    assert file.read_text() == "{"


def test_who_write_at_once_lose_nothing(tmp_path: Path) -> None:
    from controlplane.gateway.access.key_file import change_keys
    from controlplane.gateway.access.keys import ApiKey, hash_of

    file = tmp_path / "keys.json"

    def add(name: str) -> None:
        made = ApiKey(name=name, sha256=hash_of(name), tenant="a")
        change_keys(file, lambda old: [*old, made])

    threads = [threading.Thread(target=add, args=(f"k{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.name for each in read_keys(file).entries} == {f"k{i}" for i in range(8)}


def test_commands_show_the_key(chorale: Chorale, gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.answers["ListAdapters"] = registry_pb.ListAdaptersResponse()
    file = tmp_path / "key"
    file.write_text("from-file\n")

    def shown(*options: str, **variables: str) -> str | bytes | None:
        result = chorale(*options, "adapters", "list", env=variables)
        assert result.exit_code == 0, result.stderr
        return gateway.metadata[-1].get("x-chorale-api-key")

    assert shown() is None
    assert shown("--api-key-file", str(file)) == "from-file"
    assert shown(CHORALE_API_KEY_FILE=str(file)) == "from-file"
    assert shown("--api-key-file", str(file), CHORALE_API_KEY="from-variable") == "from-variable"
    assert shown() is None


@pytest.mark.parametrize("option", ["--api-key-file", "--tls-ca-file"])
def test_a_file_that_is_not_there(chorale: Chorale, option: str) -> None:
    result = chorale(option, "/none", "status")
    assert result.exit_code == 2
    assert f"{option} /none: No such file" in result.stderr


def test_a_key_that_can_be_none(chorale: Chorale) -> None:
    result = chorale("status", env={"CHORALE_API_KEY": "two words"})
    assert (result.exit_code, "API_KEY_INVALID" in result.stderr) == (2, True)
