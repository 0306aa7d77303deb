"""The gateway process: a gRPC and an HTTP server in one event loop."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc

from chorale import event_loop
from chorale.channel import CONTROL_PLANE_OPTIONS
from chorale.errors import UnavailableError
from chorale.fleet_channel import open_fleet_channel
from chorale.server import Server, start_server
from chorale.v1 import (
    adapter_registry_pb2,
    admission_pb2,
    fleet_pb2,
    inference_pb2,
    inference_pb2_grpc,
    tenant_pb2,
)
from controlplane.gateway.channels import ChannelCache
from controlplane.gateway.data_planes import DataPlanes
from controlplane.gateway.door import Door, admit_for_caller
from controlplane.gateway.gate import Gate
from controlplane.gateway.health import ControlPlaneHealth
from controlplane.gateway.http.app import make_app
from controlplane.gateway.http.server import HttpServer
from controlplane.gateway.inference import InferenceServicer
from controlplane.gateway.links import Links
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.options import GatewayOptions
from controlplane.gateway.proxy import proxied
from controlplane.gateway.relay import Relay
from controlplane.gateway.tokenizing import Tokenizing

# What a request gets to end itself in after the drain.
_LAST_WORDS_S = 0.5
_MAX_TEXTS = 256
# The rest of the fleet service is between data planes and the control plane.
_FLEET_METHODS = ("ListDataPlanes", "DirectAdapter", "ListDemand")


def run(options: GatewayOptions) -> None:
    """Serves until SIGTERM or SIGINT. Raises: OSError when an address cannot be bound."""
    event_loop.run(_serve_until_signal(options))


async def serve(
    options: GatewayOptions,
    stop: asyncio.Event | None = None,
    hurry: asyncio.Event | None = None,
) -> None:
    """Serves until `stop` is set or the task is cancelled; ends within a second of what running
    requests then get to finish, or of `hurry` being set.

    Raises: OSError when an address cannot be bound; OptionError for files that do not serve.
    """
    async with AsyncExitStack() as stack:
        door = Door(options)
        control_plane = open_fleet_channel(
            options.control_plane, CONTROL_PLANE_OPTIONS, door.fleet_tls
        )
        stack.push_async_callback(control_plane.close)
        links = Links()
        channels = ChannelCache(closed=links.forget, tls=door.fleet_tls)
        stack.push_async_callback(channels.close)
        stack.push_async_callback(links.close)
        gate = Gate(options.max_concurrent_requests, "generations")
        metrics = GatewayMetrics(control_plane, [door])
        relay = Relay(control_plane, channels, links, gate, metrics.requests, options.recovery)
        stack.push_async_callback(relay.close)

        calls = Gate(options.max_concurrent_requests, "calls to the control plane")
        max_texts = min(_MAX_TEXTS, options.max_concurrent_requests)
        texts = Gate(max_texts, "texts to cut into tokens")
        tokenizing = Tokenizing(DataPlanes(control_plane), channels, texts)
        inference = InferenceServicer(relay, tokenizing)
        grpc_server = await _start_grpc(options, inference, control_plane, calls, door)
        stack.push_async_callback(grpc_server.stop, 0)
        health = ControlPlaneHealth(control_plane, grpc_server.set_serving)
        http_server = HttpServer(
            make_app(relay, tokenizing, control_plane, health, metrics, calls, options, door.guard),
            host=options.host,
            port=options.http_port,
            max_connections=2 * options.max_concurrent_requests,
            tls=door.http_context(),
        )
        await http_server.start()
        stack.push_async_callback(http_server.kill)

        watcher = asyncio.create_task(health.watch(), name="control-plane-health")
        stack.push_async_callback(_cancel, watcher)
        reader = asyncio.create_task(door.watch(), name="watched-files")
        stack.push_async_callback(_cancel, reader)
        options.ready(grpc_server.port, http_server.port)
        try:
            await (stop or asyncio.Event()).wait()
        finally:
            await _cancel(watcher)
            await health.stop()
            await _drain(options, relay, grpc_server, http_server, hurry or asyncio.Event())


async def _serve_until_signal(options: GatewayOptions) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await serve(options, stop, hurry)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _start_grpc(
    options: GatewayOptions,
    servicer: InferenceServicer,
    control_plane: grpc.aio.Channel,
    calls: Gate,
    door: Door,
) -> Server:
    def add_inference(server: grpc.aio.Server) -> None:
        stubs: Any = inference_pb2_grpc
        stubs.add_InferenceServiceServicer_to_server(servicer, server)

    inference = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
    registry = adapter_registry_pb2.DESCRIPTOR.services_by_name["AdapterRegistryService"]
    admission = admission_pb2.DESCRIPTOR.services_by_name["AdmissionService"]
    fleet = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"]
    tenants = tenant_pb2.DESCRIPTOR.services_by_name["TenantService"]
    rewrites = {"Admit": admit_for_caller} if door.guard else {}
    return await start_server(
        host=options.host,
        port=options.grpc_port,
        services=[
            (inference.full_name, add_inference),
            proxied(registry, control_plane, calls),
            proxied(admission, control_plane, calls, rewrites=rewrites),
            proxied(fleet, control_plane, calls, methods=_FLEET_METHODS),
            proxied(tenants, control_plane, calls),
        ],
        error_table={},
        guard=door.guard.call if door.guard else None,
        credentials=door.grpc_credentials(),
    )


async def _drain(
    options: GatewayOptions,
    relay: Relay,
    grpc_server: Server,
    http_server: HttpServer,
    hurry: asyncio.Event,
) -> None:
    """Takes new requests for a moment, lets running ones go on until `drain_s` is over or `hurry`
    set, ends the rest with a typed error, and closes."""
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait([hurried], timeout=options.accepting_s)
    running_s = options.drain_s - options.accepting_s
    ending = asyncio.gather(
        grpc_server.stop(running_s + _LAST_WORDS_S), http_server.stop(running_s + _LAST_WORDS_S)
    )
    await asyncio.wait([ending, hurried], timeout=running_s, return_when=asyncio.FIRST_COMPLETED)
    relay.end_all(
        UnavailableError(
            "GATEWAY_STOPPING", "the gateway is stopping; try again", retry_after_s=1.0
        )
    )
    await asyncio.wait([ending], timeout=_LAST_WORDS_S)
    await http_server.kill()
    await grpc_server.stop(0)
    await ending
    await _cancel(hurried)


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
