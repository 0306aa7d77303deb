"""The engine as a child process with a private socket address."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from storage.scratch import ScratchDir, sweep

log = logging.getLogger(__name__)

# -P is passed on: where we do not import from the working directory, nor may the engine.
_SAFE_PATH = ("-P",) if sys.flags.safe_path else ()
ENGINE_COMMAND = (sys.executable, *_SAFE_PATH, "-m", "dataplane.engine.process")
_SCRATCH_PREFIX = "chorale-engine-"
_MAX_SOCKET_DIR_BYTES = 72  # a Unix socket's whole path must stay below 108
_TERMINATE_S = 2.0


class EngineProcess:
    """Runs `command ADDRESS PID`; the address is an ipc:// socket in a directory of mode 0700, the
    pid is our own.

    The child takes no input, and what it prints goes to our stderr: stdout belongs to the ready
    line. It ends itself when the thread that started it dies: start it on the main thread. It may
    be started before there is an event loop, and `discard`ed where there is none any more.
    """

    def __init__(
        self, command: Sequence[str] = ENGINE_COMMAND, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = tuple(command)
        self._environment = dict(os.environ if environment is None else environment)
        # Set for this process only, which must not load torch; the engine is built on it.
        self._environment.pop("USE_TORCH", None)
        self._directory = _private_directory()
        self._process: subprocess.Popen[bytes] | None = None
        self._exit: Future[int] = Future()

    @property
    def address(self) -> str:
        return f"ipc://{self._directory.path / 'engine'}"

    @property
    def is_started(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    def start(self) -> None:
        """Raises: OSError when the command cannot be run."""
        self._process = process = subprocess.Popen(
            [*self._command, self.address, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
            env=self._environment,
        )
        threading.Thread(
            target=lambda: self._exit.set_result(process.wait()), name="engine-exit", daemon=True
        ).start()

    async def wait(self) -> int:
        """The exit status; negative is the number of the signal that killed it."""
        return await asyncio.shield(asyncio.wrap_future(self._exit))

    def kill(self) -> None:
        """SIGKILL, which even a stopped process cannot ignore. Does nothing once it has ended."""
        if self._process is not None:
            self._process.kill()

    async def stop(self, grace_s: float) -> None:
        """Waits `grace_s` for it to exit by itself, then terminates, then kills. Idempotent."""
        process = self._process
        if process is not None and not await self._exits(grace_s):
            log.warning("the engine (pid %d) did not stop by itself; terminating it", process.pid)
            process.terminate()
            if not await self._exits(_TERMINATE_S):
                process.kill()
                await self.wait()
        self._directory.remove()

    def discard(self) -> None:
        """Kills it, if it still runs, and waits for its end. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._exit.result()
        self._directory.remove()

    async def _exits(self, within_s: float) -> bool:
        if not self._exit.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self.wait()
        return self._exit.done()


def _private_directory() -> ScratchDir:
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _MAX_SOCKET_DIR_BYTES:
        parent = "/tmp"
    for left in sweep(_SCRATCH_PREFIX, parent):
        log.info("removed %s, left over from a data plane that was killed", left)
    return ScratchDir(_SCRATCH_PREFIX, parent)


def _has_descriptor(stream: object) -> bool:
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True
