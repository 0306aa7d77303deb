"""`chorale up` as a child process of the demo."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from controlplane.die_with_parent import dying_with_parent

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 10.0
READY = re.compile(r"ready grpc=(\S+) http=(\S+)\n")


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass
class Serving:
    """A running `chorale up`. start_s: seconds that it took to be ready."""

    process: subprocess.Popen[str]
    grpc_address: str
    http_address: str
    start_s: float

    def stop(self) -> float:
        """Seconds that it took to stop. Raises: DemoError unless it ended cleanly."""
        started_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"`chorale up` did not stop within {STOP_TIMEOUT_S:g} s") from None
        if status != 0:
            raise DemoError(f"`chorale up` ended with status {status}, not 0")
        return time.monotonic() - started_s


@contextmanager
def serving(data_dir: Path) -> Generator[Serving]:
    """Runs `chorale up` with the demo model on free ports; ends it, if it has not been, on exit.

    Raises: DemoError when it does not come up; its own words are on stderr then.
    """
    command = [sys.executable, "-P", "-m", "controlplane.cli.main", "up"]
    command += [f"--data-dir={data_dir}", "--grpc-port=0", "--http-port=0"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHORALE_")}
    started_s = time.monotonic()
    # In a process group of its own: Ctrl-C is for the demo, which then stops it.
    process = subprocess.Popen(
        dying_with_parent(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**kept, "PYTHONPATH": path},
        text=True,
        process_group=0,
    )
    try:
        assert process.stdout is not None
        match = READY.fullmatch(process.stdout.readline())
        if match is None:
            raise DemoError(f"`chorale up` did not come up (status {process.wait()})")
        yield Serving(process, match[1], match[2], time.monotonic() - started_s)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
