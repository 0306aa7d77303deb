from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.cli.errors import BlockedError, UsageError
from controlplane.cli.fleet_token import (
    FILE_VARIABLE,
    VARIABLE,
    find_token,
    token_to_serve_with,
    write_token,
)
from controlplane.cli.supervisor.data_dir import DataDir, default_data_dir
from controlplane.errors import DataDirLockedError

_HOLD = """
import sys, time
from pathlib import Path
from controlplane.cli.supervisor.data_dir import DataDir
with DataDir(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_is_private(tmp_path: Path) -> None:
    with DataDir(tmp_path / "a" / "b") as data_dir:
        assert stat.S_IMODE(data_dir.path.stat().st_mode) == 0o700
        assert data_dir.logs.is_dir()


def test_the_lock_names_its_holder_and_ends_with_its_process(tmp_path: Path) -> None:
    held = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with held:
        assert held.stdout is not None
        assert held.stdout.readline() == b"held\n"
        with pytest.raises(DataDirLockedError) as caught, DataDir(tmp_path):
            pass
        assert caught.value.holder_pid == held.pid
        assert str(held.pid) in caught.value.message
        held.kill()
        held.wait()
    with DataDir(tmp_path):
        pass
    with DataDir(tmp_path):  # and again after an orderly exit
        pass


def test_a_file_in_its_place_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"), DataDir(tmp_path / "file"):
        pass


def test_default_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "chorale"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_data_dir() == Path("/home/someone/.local/state/chorale")


def test_the_fleet_token_goes_with_its_up(tmp_path: Path) -> None:
    with DataDir(tmp_path / "data") as held:
        write_token(held.fleet_token, "secret")
        assert held.fleet_token.read_text() == "secret\n"
    assert not held.fleet_token.exists()


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    def fails_with(number: int, name: str | None) -> None:
        with DataDir(tmp_path) as data_dir, data_dir.usable():
            raise OSError(number, os.strerror(number), name)

    with pytest.raises(UsageError, match="No space left") as caught:
        fails_with(errno.ENOSPC, None)
    assert caught.value.reason == "DATA_DIR_UNUSABLE"
    with pytest.raises(UsageError, match=r"gateway\.log: Is a directory"):
        fails_with(errno.EISDIR, str(tmp_path / "logs" / "gateway.log"))
    with pytest.raises(IsADirectoryError):  # not of this directory
        fails_with(errno.EISDIR, "/elsewhere")


def test_the_fleet_token_is_the_environment_s_or_a_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, " given\n")
    assert token_to_serve_with() == find_token(tmp_path / "none") == "given"
    monkeypatch.delenv(VARIABLE)
    assert len({token_to_serve_with() for _ in range(3)}) == 3


def test_commands_find_the_fleet_token_of_a_data_dir(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    default, other, named = tmp_path / "chorale", tmp_path / "other", tmp_path / "named"
    for directory in (default, other):
        directory.mkdir()
        write_token(directory / "fleet-token", f"of {directory.name}")
    assert (find_token(None), find_token(other)) == ("of chorale", "of other")
    write_token(named, "of the variable")
    monkeypatch.setenv(FILE_VARIABLE, str(named))
    assert find_token(other) == "of the variable"
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(BlockedError, match="fleet token") as caught:
        find_token(other)
    assert caught.value.reason == "FLEET_TOKEN_MISSING"
