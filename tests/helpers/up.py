"""`chorale up` as a child process, for end-to-end tests."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx
import psutil

from controlplane.die_with_parent import dying_with_parent
from tests.helpers.prometheus import Metrics
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[2]
READY = re.compile(r"ready grpc=(\S+:\d+) http=(\S+:\d+)")
# Of busy machines, too: nobody waits so long where all is well.
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
_MODULE = [sys.executable, "-P", "-m", "controlplane.cli.main"]


def chorale_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without CHORALE_… variables, our rooms importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHORALE_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
    return {**kept, "PYTHONPATH": path, **(changes or {})}


def chorale(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs `chorale ARGUMENTS` to its end; `changes` are environment variables."""
    return subprocess.run(
        [*_MODULE, *arguments],
        env=chorale_environment(changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class ChoraleUp:
    """`with ChoraleUp(data_dir, "--data-planes", "2") as up:` serves on free ports inside.

    grpc_address, http_address: HOST:PORT of the gateway. pid: the supervisor's. ready_s: seconds
    from the start to the ready line. It is killed with all its parts when this process dies.
    """

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.grpc_address = self.http_address = ""
        self.ready_s = 0.0
        self._arguments = arguments
        # Whatever a killed part leaves behind goes with it.
        self._temporary = tempfile.TemporaryDirectory(prefix="up-")
        self._environment = chorale_environment({"TMPDIR": self._temporary.name})
        self._environment |= environment or {}
        self._cwd = cwd
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader: threading.Thread | None = None
        self.stdout_lines: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.process.poll() is None:
                self.stop()
        finally:
            self.close()

    def close(self) -> None:
        """Kills it, should it still run; `stderr` cannot be read any more."""
        self.kill()
        self._stderr.close()
        self._temporary.cleanup()

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def temporary(self) -> Path:
        """The directory for what all its parts keep while they run."""
        return Path(self._temporary.name)

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far."""
        # Not read from the beginning: its place in the file is also the one that the process, which
        # may be writing, has.
        number = self._stderr.fileno()
        return os.pread(number, os.fstat(number).st_size, 0).decode()

    def start(self) -> None:
        """Returns at the ready line. Raises: AssertionError, with its logs, when none comes."""
        started_s = time.monotonic()
        self.spawn()
        try:
            line = self._lines.get(timeout=READY_TIMEOUT_S)
        except queue.Empty:
            line = "(nothing)"
        match = READY.fullmatch(line)
        if match is None:
            self.kill()
            raise AssertionError(f"no ready line but {line!r}\n{self.stderr}\n{self.logs()}")
        self.ready_s = time.monotonic() - started_s
        self.grpc_address, self.http_address = match.groups()

    def spawn(self) -> None:
        """Starts the process and waits for nothing."""
        arguments = ["--data-dir", str(self.data_dir), "--grpc-port=0", "--http-port=0"]
        self._process = subprocess.Popen(
            dying_with_parent([*_MODULE, "up", *arguments, *self._arguments]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=self._environment,
            cwd=self._cwd,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to end; the exit status. Raises: subprocess.TimeoutExpired."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit status, once it has ended. Raises: subprocess.TimeoutExpired."""
        status = self.process.wait(timeout_s)
        if self._reader is not None:
            self._reader.join(STOP_TIMEOUT_S)
        return status

    def kill(self) -> None:
        """SIGKILL to the supervisor alone: what it started must end by itself."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def descendants(self) -> list[psutil.Process]:
        """Everything that it has started, and what those have started."""
        return psutil.Process(self.pid).children(recursive=True)

    def part(self, name: str) -> psutil.Process:
        """The main process of "control-plane", "gateway", "redis" or "data-plane-0" …"""
        mark = {"redis": "redis-server"}.get(name, name)
        for process in psutil.Process(self.pid).children():
            try:
                command = process.cmdline()
            except psutil.NoSuchProcess:  # it has ended meanwhile
                continue
            if any(mark in word for word in command[:1]) or any(
                word in (mark, f"--data-plane-id={mark}") for word in command
            ):
                return process
        raise AssertionError(f"no {name} among {[p.cmdline() for p in self.descendants()]}")

    def metrics(self) -> Metrics:
        """The gateway's, as they are now."""
        return Metrics(httpx.get(f"http://{self.http_address}/metrics", timeout=60).text)

    def engine(self, name: str = "data-plane-0") -> psutil.Process:
        """That of the data plane. Waits for it: between two engines there is none."""
        return until(lambda: self.find_engine(name))

    def find_engine(self, name: str = "data-plane-0") -> psutil.Process | None:
        for process in self.part(name).children(recursive=True):
            try:
                if "dataplane.engine.process" in process.cmdline():
                    return process
            except psutil.NoSuchProcess:
                continue
        return None

    def logs(self) -> str:
        """The end of each part's log."""
        files = sorted((self.data_dir / "logs").glob("*.log"))
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as stdout:
            for line in stdout:
                self.stdout_lines.append(line.rstrip("\n"))
                self._lines.put(line.rstrip("\n"))
        self._lines.put("(end of output)")
