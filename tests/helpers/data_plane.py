"""`python -m dataplane.main` with a fake engine in the engine's place.

Run as a script it is that program; FAKE_ENGINE_SCRIPT and FAKE_ENGINE_LOG are passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import fake_engine
from tests.helpers.fake_control_plane import TOKEN
from tests.helpers.fake_engine import FakeScript


@dataclass
class DataPlane:
    process: asyncio.subprocess.Process

    async def line(self) -> str:
        """The next line on stdout; empty at its end."""
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 30)).decode().rstrip("\n")

    async def ready(self) -> str:
        """HOST:PORT of the ready line."""
        line = await self.line()
        assert line.startswith("ready data-plane "), line
        return line.rpartition("grpc=")[2]

    async def end(self) -> tuple[int, str, str]:
        """Exit status, and what is left of stdout and stderr."""
        out, err = await asyncio.wait_for(self.process.communicate(), 30)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()

    async def stop(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGTERM)
        return await self.end()


@contextlib.asynccontextmanager
async def data_plane(
    script: FakeScript, log: Path, *arguments: str, token: str = TOKEN
) -> AsyncIterator[DataPlane]:
    """The process; killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "tests.helpers.data_plane",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**fake_engine.environment(script, log), "CHORALE_FLEET_TOKEN": token},
    )
    try:
        yield DataPlane(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


if __name__ == "__main__":
    import dataplane.main

    dataplane.main.EngineProcess = functools.partial(  # type: ignore[assignment,misc]
        dataplane.main.EngineProcess, fake_engine.COMMAND
    )
    dataplane.main.app()
