"""One child process of `chorale up`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.cli.supervisor.log_file import BoundedLog
from controlplane.die_with_parent import dying_with_parent

NUM_LAST_LINES = 20
MAX_LINE_BYTES = 8192
PUMP_GRACE_S = 0.3
_ERROR_WORDS = (b"ERROR", b"CRITICAL")


@dataclass(frozen=True)
class Part:
    """What to run: an absolute program and its arguments. It prints a line `ready …` on stdout
    once it can serve, and ends on SIGTERM.

    environment: what it gets beside the supervisor's own.
    stop_phase: parts of a lower phase are stopped, and gone, before those of a higher one.
    drain_s: what it takes, at most, to finish what it has begun, once it is to stop.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    stop_phase: int = 0
    drain_s: float = 0.0


def python_module(module: str) -> list[str]:
    """The beginning of a command that runs a module of ours with this interpreter.

    -P: the working directory is the user's, and no place to import from.
    """
    return [sys.executable, "-P", "-m", module]


class Child:
    """A running part: its output goes to `log`; `on_ready` is called at its line `ready …`.

    It is the leader of a process group of its own, so that a terminal's Ctrl-C reaches only the
    supervisor, and so that killing it takes what it started along.
    """

    def __init__(
        self,
        part: Part,
        environment: Mapping[str, str],
        log: BoundedLog,
        on_ready: Callable[[], None],
        on_error_line: Callable[[str], None],
    ) -> None:
        self.part = part
        self._environment = environment
        self.last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
        self.started_s = 0.0
        self._log = log
        self._on_ready = on_ready
        self._on_error_line = on_error_line
        self._process: Process | None = None
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        return self._running().pid

    async def start(self) -> None:
        """Must be called on the main thread: see die_with_parent."""
        self.started_s = time.monotonic()
        self._process = process = await asyncio.create_subprocess_exec(
            *dying_with_parent([*self.part.command]),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
            process_group=0,
        )
        assert process.stdout is not None and process.stderr is not None
        self._pumps = [
            asyncio.create_task(self._pump(process.stdout, self._take_stdout)),
            asyncio.create_task(self._pump(process.stderr, self._take_stderr)),
        ]

    async def wait(self) -> int:
        """Waits for the end; the exit status, negative for a signal. All its output is logged."""
        status = await self._running().wait()
        # A grandchild that outlives it may hold the pipes open: they are not waited for long.
        _, open_pumps = await asyncio.wait(self._pumps, timeout=PUMP_GRACE_S)
        for pump in open_pumps:
            pump.cancel()
        await asyncio.gather(*open_pumps, return_exceptions=True)
        return status

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._running().send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills it with everything in its process group."""
        if self._running().returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _running(self) -> Process:
        assert self._process is not None, f"{self.part.name} was not started"
        return self._process

    async def _pump(self, stream: asyncio.StreamReader, take: Callable[[bytes], None]) -> None:
        pending = b""
        while data := await stream.read(65_536):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                take(line)
            if len(pending) > MAX_LINE_BYTES:
                take(pending)
                pending = b""
        if pending:
            take(pending)

    def _take_stdout(self, line: bytes) -> None:
        self._record(line)
        if line.startswith(b"ready "):
            self._on_ready()

    def _take_stderr(self, line: bytes) -> None:
        text = self._record(line)
        if any(word in line[:80] for word in _ERROR_WORDS):
            self._on_error_line(text)

    def _record(self, line: bytes) -> str:
        line = line[:MAX_LINE_BYTES].rstrip()
        self._log.write(line + b"\n")
        text = "".join(c for c in line.decode(errors="replace") if c == "\t" or c.isprintable())
        if text:
            self.last_lines.append(text)
        return text
