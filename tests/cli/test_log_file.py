from __future__ import annotations

from pathlib import Path

from controlplane.cli.supervisor.log_file import BoundedLog


def test_a_full_log_moves_aside_and_a_new_one_begins(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "part.log", max_bytes=100)
    for index in range(50):
        log.write(b"line %02d\n" % index)
    log.close()
    now = (tmp_path / "part.log").read_bytes()
    before = (tmp_path / "part.log.1").read_bytes()
    assert now.endswith(b"line 49\n") and len(now) <= 100 and len(before) <= 100
    assert (before + now).splitlines() == [b"line %02d" % n for n in range(36, 50)]
    assert len(list(tmp_path.iterdir())) == 2


def test_appends_to_what_is_there(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = BoundedLog(tmp_path / "part.log")
        log.write(text)
        log.close()
    assert (tmp_path / "part.log").read_bytes() == b"one\ntwo\n"
