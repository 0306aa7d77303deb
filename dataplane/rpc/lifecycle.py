"""A data plane's frontend from start to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from chorale.address import host_port
from chorale.exporter import Exporter
from chorale.fleet_tls import FleetTls
from chorale.request_metrics import RequestMetrics
from chorale.server import Server, start_server
from chorale.told_clock import ToldClock
from chorale.v1 import admin_pb2_grpc, fleet_pb2, inference_pb2_grpc, relay_pb2_grpc
from dataplane import channel
from dataplane.engine_options import EngineOptions
from dataplane.rpc import admin, metrics, relay
from dataplane.rpc.announce import base_model_of, directive_of, load_of, residency_of
from dataplane.rpc.engine_keeper import EngineKeeper, KeeperOptions
from dataplane.rpc.engine_process import EngineProcess
from dataplane.rpc.fleet import FleetMember
from dataplane.rpc.gate import TicketGate
from dataplane.rpc.inference import SERVICE_NAME, InferenceService
from dataplane.text.tool_format import ToolCallFormatName

if TYPE_CHECKING:
    from dataplane.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_LAST_ANSWERS_S = 0.5
_WILDCARD_HOSTS = ("0.0.0.0", "[::]", "::", "")


@dataclass(frozen=True, kw_only=True)
class DataPlaneOptions:
    """engine: as the engine process gets them, `model_dir` being a local directory.

    metrics_port: where Prometheus finds /metrics on `host`, 0 picks a free one; None: nowhere.
    advertise: HOST or HOST:PORT where others reach this data plane; empty: `host`, or this
    machine's name when `host` is a wildcard. data_plane_id: empty: made of machine and port.
    ttft_slo_s: the objective for the first token of requests that name none; 0: nothing.
    drain_s: how long open requests may go on once it is to stop.
    tool_call_format: how the base model writes calls of functions; "auto": as its chat template
    tells.
    engine_timeout_s: an engine that is silent for so long is replaced; 0: never.
    first_engine: a process that was started early, to become the first engine. spawn_engine: makes
    the processes of those that replace it.
    """

    engine: EngineOptions
    control_plane: str
    fleet_token: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int | None = None
    advertise: str = ""
    data_plane_id: str = ""
    ttft_slo_s: float = 0.0
    drain_s: float = 2.0
    tool_call_format: ToolCallFormatName = "auto"
    engine_timeout_s: float = 60.0
    first_engine: EngineProcess | None = None
    spawn_engine: Callable[[], EngineProcess] = EngineProcess


async def serve(options: DataPlaneOptions, ready: Callable[[str, str], None]) -> bool:
    """Serves until SIGTERM or SIGINT (returns true) or until no engine can be kept running (false).
    A second signal cuts short what open requests get to finish.

    ready: called with the data plane's id and HOST:PORT once it serves and has joined the fleet.
    Raises: DataPlaneError or ChoraleError when it cannot start; OSError when the address is taken.
    """
    loop = asyncio.get_running_loop()
    asked, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
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
        await data_plane.stop(hurry)


class _DataPlane:
    def __init__(self, options: DataPlaneOptions) -> None:
        self._options = options
        self._engine = EngineKeeper(
            KeeperOptions(
                engine=options.engine,
                hang_timeout_s=options.engine_timeout_s,
                first=options.first_engine,
                spawn=options.spawn_engine,
            )
        )
        self._service: InferenceService | None = None
        self._relay: relay.RelayService | None = None
        self._server: Server | None = None
        self._member: FleetMember | None = None
        self._exporter: Exporter | None = None
        files = options.engine.fleet_tls
        self._tls = None if files is None else FleetTls(files)
        self._watching: asyncio.Task[None] | None = None

    async def run(self, ready: Callable[[str, str], None]) -> None:
        """Starts everything, then serves until no engine can be kept running."""
        if self._tls is not None:
            self._watching = asyncio.create_task(self._tls.files.watch(), name="fleet-tls")
        await self._engine.start()
        # The engine loads its weights meanwhile, in its own process.
        tokenizer, announced = await asyncio.gather(
            asyncio.to_thread(_load_tokenizer, self._options),
            self._engine.wait_ready(),
        )
        vocabulary = await asyncio.to_thread(vocabulary_of, announced, tokenizer)
        await self._engine.teach(vocabulary)
        data_plane_id = self._options.data_plane_id or _made_id(self._options)
        clock = ToldClock()
        gate = TicketGate(data_plane_id, announced.model_name, clock)
        requests = RequestMetrics(metrics.PREFIX)
        server = await self._start_server(
            tokenizer, vocabulary, announced, gate, requests, data_plane_id
        )
        await self._export(requests, data_plane_id)
        member = self._member = self._membership(announced, gate, clock, data_plane_id, server.port)
        member.start()
        await member.wait_joined()
        await server.set_serving(True)
        # What was loaded so far stays: later collections need not walk it and stall the streams.
        gc.collect()
        gc.freeze()
        ready(data_plane_id, server.address)
        while True:
            await self._engine.wait_lost()
            await server.set_serving(False)
            # Out of the fleet meanwhile, so that nothing is placed here.
            _, usable = await asyncio.gather(member.pause(), self._engine.restart())
            if not usable:
                return
            member.resume(time.time_ns())
            await server.set_serving(True)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Leaves, drains (until `hurry` is set), stops the engine; whatever has been started."""
        if self._server is not None:
            await self._server.set_serving(False)
        await asyncio.gather(self._leave(), self._drain(hurry))
        if self._exporter is not None:
            await self._exporter.stop()
        if self._server is not None:
            await self._server.stop(_LAST_ANSWERS_S)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._service is not None:
            self._service.close()
        await self._engine.stop()

    async def _start_server(
        self,
        tokenizer: Tokenizer,
        vocabulary: channel.Vocabulary,
        announced: channel.Ready,
        gate: TicketGate,
        requests: RequestMetrics,
        data_plane_id: str,
    ) -> Server:
        options = self._options
        service = self._service = InferenceService(
            engine=lambda: self._engine.client,
            ready=announced,
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            gate=gate,
            data_plane_id=data_plane_id,
            max_open=options.engine.max_waiting + announced.max_running,
            ttft_slo_s=options.ttft_slo_s or None,
            metrics=requests,
        )
        administration = admin.AdminService(
            engine=lambda: self._engine.client,
            data_plane_id=data_plane_id,
            page_bytes=announced.page_bytes,
            fleet_token=options.fleet_token,
        )
        relayed = self._relay = relay.RelayService(service.events)
        generated, admin_generated, relay_generated = cast(
            "Any", (inference_pb2_grpc, admin_pb2_grpc, relay_pb2_grpc)
        )  # untyped
        add_inference = generated.add_InferenceServiceServicer_to_server
        add_admin = admin_generated.add_DataPlaneAdminServiceServicer_to_server
        add_relay = relay_generated.add_RelayServiceServicer_to_server
        self._server = await start_server(
            host=options.host,
            port=options.port,
            services=[
                (SERVICE_NAME, lambda to: add_inference(service, to)),
                (relay.SERVICE_NAME, lambda to: add_relay(relayed, to)),
                (admin.SERVICE_NAME, lambda to: add_admin(administration, to)),
            ],
            error_table={},
            fleet_tls=self._tls,
        )
        return self._server

    def _membership(
        self,
        announced: channel.Ready,
        gate: TicketGate,
        clock: ToldClock,
        data_plane_id: str,
        port: int,
    ) -> FleetMember:
        options = self._options
        assert self._service is not None
        return FleetMember(
            options.control_plane,
            options.fleet_token,
            join=fleet_pb2.JoinRequest(
                data_plane_id=data_plane_id,
                incarnation=time.time_ns(),
                endpoint=endpoint_of(options.advertise, options.host, port),
                base_model=base_model_of(announced),
            ),
            report=self._report,
            on_keys=gate.set_keys,
            on_time=clock.told,
            on_directive=self._direct,
            settlements=self._service.settlements,
            generations=self._service.generations,
            tls=self._tls,
        )

    def _report(self) -> tuple[fleet_pb2.Load, fleet_pb2.Residency]:
        return self._load(), residency_of(self._engine.client.stats)

    def _load(self) -> fleet_pb2.Load:
        assert self._service is not None
        load = load_of(self._engine.ready, self._engine.client.stats)
        load.ttft_slo_s = self._options.ttft_slo_s
        load.characters_per_token = self._service.text_ratio.characters_per_token
        load.path_s = self._service.first_tokens.path_s(time.monotonic())
        return load

    async def _export(self, requests: RequestMetrics, data_plane_id: str) -> None:
        options = self._options
        if options.metrics_port is None:
            return
        engine = metrics.EngineCollector(
            data_plane_id, self._load, lambda: self._engine.client.stats
        )
        assert self._service is not None
        service = self._service
        registry = metrics.make_registry(requests, engine, service.foresight, service.constraints)
        self._exporter = Exporter(registry)
        await self._exporter.start(options.host, options.metrics_port)
        log.info("metrics on %s:%s", options.host, self._exporter.port)

    def _direct(self, message: fleet_pb2.Directive) -> None:
        directive = directive_of(message)
        if directive is None:
            log.warning("a directive of a kind that this version does not know: %s", message.action)
        else:
            self._engine.client.direct(directive)

    async def _leave(self) -> None:
        if self._member is not None:
            await self._member.stop()

    async def _drain(self, hurry: asyncio.Event) -> None:
        if self._service is not None:
            await self._service.drain(self._options.drain_s, hurry)
        if self._relay is not None:
            self._relay.finish()


def endpoint_of(advertise: str, host: str, port: int) -> str:
    """HOST:PORT to reach this data plane at; `port` is the one it listens on."""
    if not advertise:
        advertise = socket.gethostname() if host in _WILDCARD_HOSTS else host
    bracketed = advertise.startswith("[")
    has_port = "]:" in advertise if bracketed else advertise.count(":") == 1
    return advertise if has_port else host_port(advertise, port)


def _made_id(options: DataPlaneOptions) -> str:
    """Another for each data plane of a machine."""
    return f"{socket.gethostname()}-{options.port or os.getpid()}"


def _load_tokenizer(options: DataPlaneOptions) -> Tokenizer:
    from dataplane.text.tokenizer import load_tokenizer  # a second's worth of imports

    return load_tokenizer(Path(options.engine.model_dir), options.tool_call_format)


def vocabulary_of(announced: channel.Ready, tokenizer: Tokenizer) -> channel.Vocabulary:
    """For grammars. Takes some tenths of a second for a large one."""
    num_tokens = tokenizer.num_tokens
    return channel.Vocabulary(
        tokenizer=tokenizer.to_json().encode(),
        num_tokens=num_tokens,
        vocab_size=announced.vocab_size,
        eos_token_ids=[each for each in announced.eos_token_ids if each < num_tokens],
    )
