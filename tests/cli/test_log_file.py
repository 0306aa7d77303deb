from __future__ import annotations

from pathlib import Path

import pytest

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


def test_a_disk_that_takes_nothing_costs_lines_and_no_more(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = BoundedLog(tmp_path / "part.log", max_bytes=1000)
    log.write(b"one\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        for _ in range(3):
            log.write(b"lost\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write(b"two\n")
    log.write(b"three\n")
    log.close()
    assert (tmp_path / "part.log").read_bytes() == (
        b"one\n(3 lines before this one could not be written)\ntwo\nthree\n"
    )


def test_a_log_that_cannot_be_moved_aside_goes_on(tmp_path: Path) -> None:
    (tmp_path / "part.log.1").mkdir()
    log = BoundedLog(tmp_path / "part.log", max_bytes=10)
    for index in range(5):
        log.write(b"line %d\n" % index)
    assert (tmp_path / "part.log").read_bytes() == b"line 0\n"
    (tmp_path / "part.log.1").rmdir()
    log.write(b"line 5\n")
    log.close()
    assert (tmp_path / "part.log.1").read_bytes() == b"line 0\n"
    assert (tmp_path / "part.log").read_bytes().endswith(b"line 5\n")
