from __future__ import annotations

from pathlib import Path

import pytest

from chorale.secret_file import read_secret


@pytest.mark.parametrize("content", [b"abc", b"abc\n", b" abc\r\n"])
def test_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    assert read_secret(tmp_path / "secret") == "abc"


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb", b"\xff", b"a\x00b", b"x" * 4097])
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ValueError, match="one line of printable ASCII"):
        read_secret(tmp_path / "secret")
    with pytest.raises(FileNotFoundError):
        read_secret(tmp_path / "none")
