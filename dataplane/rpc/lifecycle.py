"""A data plane's frontend from start to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from chorale.server import Server, start_server
from chorale.v1 import fleet_pb2, inference_pb2_grpc
from dataplane import channel
from dataplane.rpc.announce import base_model_of, load_of, residency_of
from dataplane.rpc.engine_client import EngineClient
from dataplane.rpc.engine_process import ENGINE_COMMAND
from dataplane.rpc.fleet import FleetMember
from dataplane.rpc.gate import TicketGate
from dataplane.rpc.inference import SERVICE_NAME, InferenceService

if TYPE_CHECKING:
    from dataplane.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_DRAIN_S = 2.0
_LAST_ANSWERS_S = 0.5
_WILDCARD_HOSTS = ("0.0.0.0", "[::]", "::", "")


@dataclass(frozen=True, kw_only=True)
class DataPlaneOptions:
    """engine: as the engine process gets them, `model_dir` being a local directory.

    advertise: HOST or HOST:PORT where others reach this data plane; empty: `host`, or this
    machine's name when `host` is a wildcard. data_plane_id: empty: made of machine and port.
    """

    engine: channel.EngineOptions
    control_plane: str
    fleet_token: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    data_plane_id: str = ""
    engine_command: Sequence[str] = ENGINE_COMMAND
    engine_environment: Mapping[str, str] | None = None


async def serve(options: DataPlaneOptions, ready: Callable[[str, str], None]) -> bool:
    """Serves until SIGTERM or SIGINT (returns true) or until the engine is lost (false).

    ready: called with the data plane's id and HOST:PORT once it serves and has joined the fleet.
    Raises: DataPlaneError or ChoraleError when it cannot start; OSError when the address is taken.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    data_plane = _DataPlane(options)
    running = asyncio.create_task(data_plane.run(ready), name="data-plane")
    stopping = asyncio.create_task(asked.wait(), name="stop-signal")
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        return asked.is_set()
    finally:
        running.cancel()
        stopping.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)
        await data_plane.stop()


class _DataPlane:
    def __init__(self, options: DataPlaneOptions) -> None:
        self._options = options
        self._lost = asyncio.Event()
        self._engine = EngineClient(
            options.engine,
            on_lost=lambda _reason: self._lost.set(),
            command=options.engine_command,
            environment=options.engine_environment,
        )
        self._service: InferenceService | None = None
        self._server: Server | None = None
        self._member: FleetMember | None = None

    async def run(self, ready: Callable[[str, str], None]) -> None:
        """Starts everything, then waits until the engine is lost."""
        await self._engine.start()
        # The engine loads its weights meanwhile, in its own process.
        tokenizer, announced = await asyncio.gather(
            asyncio.to_thread(_load_tokenizer, Path(self._options.engine.model_dir)),
            self._engine.wait_ready(),
        )
        options = self._options
        data_plane_id = options.data_plane_id or f"{socket.gethostname()}-{_distinct(options)}"
        gate = TicketGate(data_plane_id, announced.model_name)
        service = self._service = InferenceService(
            engine=self._engine,
            ready=announced,
            tokenizer=tokenizer,
            gate=gate,
            data_plane_id=data_plane_id,
            max_open=options.engine.max_waiting + announced.max_running,
        )
        generated = cast("Any", inference_pb2_grpc)  # without types
        server = self._server = await start_server(
            host=options.host,
            port=options.port,
            services=[
                (
                    SERVICE_NAME,
                    lambda to: generated.add_InferenceServiceServicer_to_server(service, to),
                )
            ],
            error_table={},
        )
        self._member = FleetMember(
            options.control_plane,
            options.fleet_token,
            join=fleet_pb2.JoinRequest(
                data_plane_id=data_plane_id,
                incarnation=time.time_ns(),
                endpoint=endpoint_of(options.advertise, options.host, server.port),
                base_model=base_model_of(announced),
            ),
            report=lambda: (
                load_of(announced, self._engine.stats),
                residency_of(self._engine.stats),
            ),
            on_keys=gate.set_keys,
        )
        self._member.start()
        await self._member.wait_joined()
        await server.set_serving(True)
        # What was loaded so far stays: later collections need not walk it and stall the streams.
        gc.collect()
        gc.freeze()
        ready(data_plane_id, server.address)
        await self._lost.wait()

    async def stop(self) -> None:
        """Leaves, drains, stops the engine; whatever of it has been started."""
        if self._server is not None:
            await self._server.set_serving(False)
        await asyncio.gather(self._leave(), self._drain())
        if self._server is not None:
            await self._server.stop(_LAST_ANSWERS_S)
        if self._service is not None:
            self._service.close()
        await self._engine.stop()

    async def _leave(self) -> None:
        if self._member is not None:
            await self._member.stop()

    async def _drain(self) -> None:
        if self._service is not None:
            await self._service.drain(_DRAIN_S)


def endpoint_of(advertise: str, host: str, port: int) -> str:
    """HOST:PORT to reach this data plane at; `port` is the one it listens on."""
    if not advertise:
        advertise = socket.gethostname() if host in _WILDCARD_HOSTS else host
    bracketed = advertise.startswith("[")
    has_port = "]:" in advertise if bracketed else advertise.count(":") == 1
    return advertise if has_port else f"{advertise}:{port}"


def _distinct(options: DataPlaneOptions) -> int:
    return options.port or os.getpid()


def _load_tokenizer(model_dir: Path) -> Tokenizer:
    from dataplane.text.tokenizer import load_tokenizer  # a second's worth of imports

    return load_tokenizer(model_dir)
