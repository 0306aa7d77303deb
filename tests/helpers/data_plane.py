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
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from chorale.v1 import inference_pb2, inference_pb2_grpc
from tests.helpers import fake_engine
from tests.helpers.fake_control_plane import TOKEN, make_ticket
from tests.helpers.fake_engine import FakeScript
from tests.helpers.waiting import PATIENCE_S


@dataclass
class DataPlane:
    process: asyncio.subprocess.Process
    _logged: list[str] = field(default_factory=list[str])

    async def line(self) -> str:
        """The next line on stdout; empty at its end."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)
        return line.decode().rstrip("\n")

    async def ready(self) -> str:
        """HOST:PORT of the ready line."""
        line = await self.line()
        assert line.startswith("ready data-plane "), line
        return line.rpartition("grpc=")[2]

    async def logged(self, text: str) -> str:
        """The next line on stderr with that in it."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := (await self.process.stderr.readline()).decode():
                self._logged.append(line)
                if text in line:
                    return line.rstrip("\n")
        raise AssertionError("".join(self._logged))

    async def end(self) -> tuple[int, str, str]:
        """Exit status, what is left of stdout, and all of stderr."""
        out, err = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), "".join(self._logged) + err.decode()

    async def stop(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGTERM)
        return await self.end()


async def generated(
    channel: grpc.aio.Channel, *, expires_in_s: float = 600.0
) -> list[inference_pb2.GenerateResponse]:
    """The events of one request with a ticket of its own. Raises: grpc.RpcError."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    ticket = make_ticket(expires_in_s=expires_in_s)
    request = inference_pb2.GenerateRequest(prompt="hello", ticket=ticket)
    return [event async for event in stub.Generate(request)]


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
    import dataplane.rpc.fleet

    dataplane.rpc.fleet._LEAVE_TIMEOUT_S = PATIENCE_S  # pyright: ignore[reportPrivateUsage]
    dataplane.main.EngineProcess = functools.partial(  # type: ignore[assignment,misc]
        dataplane.main.EngineProcess, fake_engine.COMMAND
    )
    dataplane.main.app()
