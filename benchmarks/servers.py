"""Servers to compare, as child processes on free ports of 127.0.0.1."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import PeerError
from benchmarks.fixtures import Fixtures
from benchmarks.load.provenance import ROOT
from controlplane.die_with_parent import dying_with_parent

READY_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 20.0
_READY = re.compile(r"^ready grpc=(\S+) http=(\S+)$", re.MULTILINE)
_POLL_S = 0.2
_LAST_LINES = 15


@dataclass
class Server:
    """A running server. `paused` freezes it, so that a server that waits takes no processor time
    from the one that is measured."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    http_url: str = ""
    grpc_address: str = ""

    @contextmanager
    def paused(self) -> Generator[None]:
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def check_alive(self) -> None:
        """Raises: PeerError with the end of its log when it has ended."""
        status = self.process.poll()
        if status is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            raise PeerError(
                "SERVER_ENDED",
                f"{self.name} ended with status {status}; its last lines:\n" + "\n".join(lines),
                metadata={"server": self.name, "exit_status": str(status)},
            )


@contextmanager
def chorale_server(fixtures: Fixtures, folder: Path, *arguments: str) -> Generator[Server]:
    """`chorale up` with the fixtures' model, called "bench". Raises: PeerError."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
    command = [sys.executable, "-P", "-m", "controlplane.cli.main", "up"]
    command += [f"--model={fixtures.model}", "--model-name=bench"]
    command += [f"--adapter-root={fixtures.adapter_root}", f"--data-dir={folder / 'chorale'}"]
    command += ["--grpc-port=0", "--http-port=0", *arguments]
    with _running("chorale", command, {"PYTHONPATH": path}, folder) as server:
        match = None
        for _ in _until_ready(server):
            match = _READY.search(server.log.read_text(errors="replace"))
            if match:
                break
        assert match is not None
        server.grpc_address, server.http_url = match[1], f"http://{match[2]}/v1"
        yield server


@contextmanager
def openai_server(
    name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Generator[Server]:
    """A server that takes --port and answers /health when it can serve. Raises: PeerError."""
    port = _free_port()
    full = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with _running(name, full, environment, folder) as server:
        for _ in _until_ready(server):
            if _answers(f"http://127.0.0.1:{port}/health"):
                break
        server.http_url = f"http://127.0.0.1:{port}/v1"
        yield server


@contextmanager
def _running(
    name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Generator[Server]:
    log = folder / f"{name}.log"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CHORALE_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            dying_with_parent([*command]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**kept, **environment},
            cwd=folder,
            process_group=0,
        )
    try:
        yield Server(name, process, log)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):  # whoever of its group is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _until_ready(server: Server) -> Generator[None]:
    """Yields until the caller has seen enough. Raises: PeerError."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        server.check_alive()
        yield
        time.sleep(_POLL_S)
    raise PeerError(
        "SERVER_NOT_READY",
        f"{server.name} was not ready after {READY_TIMEOUT_S:g} s; its log is {server.log}",
        metadata={"server": server.name},
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
