"""The engine as a child process with a private socket address."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

# -P is passed on: where we do not import from the working directory, nor may the engine.
_SAFE_PATH = ("-P",) if sys.flags.safe_path else ()
ENGINE_COMMAND = (sys.executable, *_SAFE_PATH, "-m", "dataplane.engine.process")
_MAX_SOCKET_DIR_BYTES = 80  # a Unix socket's whole path must stay below 108
_TERMINATE_S = 2.0


class EngineProcess:
    """Runs `command ADDRESS`; the address is an ipc:// socket in a directory of mode 0700.

    The child takes no input, and what it prints goes to our stderr: stdout belongs to the ready
    line. It ends itself when this process dies.
    """

    def __init__(
        self, command: Sequence[str] = ENGINE_COMMAND, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = tuple(command)
        self._environment = dict(os.environ if environment is None else environment)
        # Set for this process only, which must not load torch; the engine is built on it.
        self._environment.pop("USE_TORCH", None)
        self._directory = _private_directory()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"ipc://{self._directory / 'engine'}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    async def start(self) -> None:
        """Raises: OSError when the command cannot be run."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            self.address,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
            env=self._environment,
        )

    async def wait(self) -> int:
        """The exit status; negative is the number of the signal that killed it."""
        assert self._process is not None, "start() comes first"
        return await self._process.wait()

    async def stop(self, grace_s: float) -> None:
        """Waits `grace_s` for it to exit by itself, then terminates, then kills. Idempotent."""
        process = self._process
        if process is not None and not await _exits(process, grace_s):
            log.warning("the engine (pid %d) did not stop by itself; terminating it", process.pid)
            process.terminate()
            if not await _exits(process, _TERMINATE_S):
                process.kill()
                await process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


async def _exits(process: asyncio.subprocess.Process, within_s: float) -> bool:
    if process.returncode is not None:
        return True
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        return False
    return True


def _private_directory() -> Path:
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _MAX_SOCKET_DIR_BYTES:
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="chorale-", dir=parent))


def _has_descriptor(stream: object) -> bool:
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True
