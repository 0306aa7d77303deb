from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Generator
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


def test_says_how_many_lines_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    log = BoundedLog(path)
    log.write(b"before\n")
    with _bounded_files(path.stat().st_size):
        log.write(b"lost\n")
        log.write(b"lost\n")
    log.write(b"after\n")
    log.close()
    assert path.read_bytes() == b"before\n\n(2 lines are missing: File too large)\nafter\n"


@contextlib.contextmanager
def _bounded_files(max_bytes: int) -> Generator[None]:
    """Files of this process cannot grow beyond: what a full disk is, without one."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)
