"""Files that are read again when they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chorale.watched import Watched
from controlplane.gateway.access import key_file
from controlplane.gateway.access.key_file import change_keys, read_keys

TIME = (1_700_000_000, 1_700_000_000)


def text_at(path: Path) -> Watched[str]:
    return Watched([path], path.read_text)


def write(path: Path, text: str) -> Path:
    """As old and as long as every other: only what is there tells that it is another."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, TIME)
    return path


def test_a_kubernetes_secret_that_is_swapped(tmp_path: Path) -> None:
    write(tmp_path / "1" / "keys", "one")
    write(tmp_path / "2" / "keys", "two")
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "keys").symlink_to("data/keys")
    watched = text_at(tmp_path / "keys")
    watched.look()
    assert watched.value == "one"
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").replace(tmp_path / "data")
    watched.look()
    assert (watched.value, watched.is_stale) == ("two", False)


def test_a_file_that_comes_back(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", "one")
    watched = text_at(path)
    path.rename(tmp_path / "away")
    watched.look()
    assert (watched.value, watched.is_stale) == ("one", True)
    (tmp_path / "away").rename(path)
    watched.look()
    assert (watched.value, watched.is_stale) == ("one", False)


def test_a_file_that_is_half_written_counts_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text('{"keys": []}')
    watched = Watched([path], lambda: read_keys(path))
    before = watched.value
    for text, is_stale in (('{"keys":', True), ('{"keys": [ ', True), ('{"keys": [ ]}', False)):
        path.write_text(text)
        watched.look()
        assert (watched.value is before, watched.is_stale) == (is_stale, is_stale)


def test_a_key_file_is_read_to_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys": []}')
    monkeypatch.setattr(key_file, "_MAX_BYTES", 12)
    assert not read_keys(path).entries
    path.write_text('{"keys": []} ')
    with pytest.raises(ValueError, match="at most 12 bytes"):
        read_keys(path)


def test_a_change_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys": []}')

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        change_keys(path, list)
    assert [each.name for each in tmp_path.iterdir()] == ["keys.json"]
    assert path.read_text() == '{"keys": []}'
