from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from storage.scratch import ScratchDir, sweep, sweep_one

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from storage.scratch import ScratchDir
print(ScratchDir("left-", sys.argv[1]).path, flush=True)
time.sleep(60)
"""


def start_holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a ScratchDir, and the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(parent)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().rstrip("\n"))


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_is_private_and_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    scratch = ScratchDir("x-", str(tmp_path))
    assert scratch.path.parent == tmp_path and scratch.path.name.startswith("x-")
    assert stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
    assert (scratch.path / "owner").read_text() == f"{os.getpid()}\n"
    (scratch.path / "file").write_text("x")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(scratch.path / "s"))
    scratch.remove()
    scratch.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_what_lives_stays(tmp_path: Path) -> None:
    process, left = start_holder(tmp_path)
    mine = ScratchDir("left-", str(tmp_path))
    try:
        (left / "engine").write_text("x")
        assert sweep("left-", str(tmp_path)) == [], "its process lives"
        kill(process)
        assert sweep("other-", str(tmp_path)) == [] and left.exists()
        assert sweep("left-", str(tmp_path)) == [left]
        assert not left.exists() and mine.path.exists()
    finally:
        kill(process)
        mine.remove()


@pytest.mark.parametrize("how", ["link", "no owner", "open to others", "owner is a link", "file"])
def test_what_is_not_surely_ours_is_not_touched(tmp_path: Path, how: str) -> None:
    parent = tmp_path / "tmp"
    parent.mkdir()
    process, left = start_holder(parent)
    kill(process)
    (left / "precious").write_text("x")
    if how == "link":
        left = left.rename(tmp_path / "elsewhere")
        (parent / "left-1").symlink_to(left)
        assert not sweep_one(parent / "left-1")
    elif how == "no owner":
        (left / "owner").unlink()
    elif how == "open to others":
        left.chmod(0o750)
    elif how == "owner is a link":
        (left / "owner").rename(tmp_path / "owner")
        (left / "owner").symlink_to(tmp_path / "owner")
    else:
        (parent / "left-file").write_text("x")
        assert not sweep_one(parent / "left-file")
        assert sweep("left-", str(parent)) == [left]
        assert (parent / "left-file").read_text() == "x"
        return
    assert sweep("left-", str(parent)) == []
    assert (left / "precious").read_text() == "x"


def test_a_directory_inside_is_left_alone(tmp_path: Path) -> None:
    process, left = start_holder(tmp_path)
    kill(process)
    (left / "inner").mkdir()
    (left / "inner" / "precious").write_text("x")
    assert sweep("left-", str(tmp_path)) == []
    assert (left / "inner" / "precious").read_text() == "x"


def test_a_parent_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert sweep("left-", str(tmp_path / "none")) == []
