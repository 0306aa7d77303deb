"""Files are written whole, with direct writes and where there are none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from storage import durable
from storage.durable import write_durably

MB = 1 << 20
SIZES = [0, 1, 4095, MB - 1, MB, MB + 1, 2 * MB + 4096, 3 * MB + 4097]


@pytest.mark.parametrize("size", SIZES)
def test_content_is_what_was_given(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    write_durably(tmp_path / "file", memoryview(data))
    assert (tmp_path / "file").read_bytes() == data


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_where_the_flag_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_DIRECT", 0)
    data = os.urandom(2 * MB + 5)
    write_durably(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("taken", [0, MB, MB + 100])
def test_where_direct_writes_end_early(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused from the start, after a while, or in the middle of a block."""
    data = os.urandom(3 * MB + 5)
    write, is_direct, direct_bytes = os.write, [False], [0]

    def set_direct(fd: int, on: bool) -> bool:
        is_direct[0] = on
        return True

    def limited(fd: int, piece: memoryview) -> int:
        if not is_direct[0]:
            return write(fd, piece)
        left = taken - direct_bytes[0]
        if left <= 0:
            raise OSError(errno.EINVAL, "no direct writes")
        count = write(fd, piece[:left])
        direct_bytes[0] += count
        return count

    monkeypatch.setattr(durable, "_set_direct", set_direct)
    monkeypatch.setattr(durable.os, "write", limited)
    write_durably(tmp_path / "file", data)
    assert direct_bytes[0] == taken
    assert (tmp_path / "file").read_bytes() == data


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, piece: memoryview) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(durable.os, "write", full)
    with pytest.raises(OSError, match="no space"):
        write_durably(tmp_path / "file", bytes(2 * MB))
