"""The control plane process: registry, fleet and admission behind one gRPC server."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from chorale import event_loop
from chorale.exporter import Exporter
from chorale.fleet_tls import FleetTls
from chorale.server import Server, start_server
from controlplane.errors import StoreUnavailableError
from controlplane.options import ControlPlaneOptions
from controlplane.parts import make_parts
from controlplane.rpc.error_table import ERROR_TABLE
from controlplane.rpc.services import services_of
from controlplane.store.client import Store
from controlplane.tasks import end

log = logging.getLogger(__name__)

_HEALTH_INTERVAL_S = 0.5
_GRACE_S = 1.0


async def serve(
    options: ControlPlaneOptions,
    *,
    ready: Callable[[str, int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until `stop` is set, or without one until cancelled. Calls `ready(host, port)` when
    it can serve.

    Raises: StoreUnavailableError when Redis does not answer within `redis_start_s`; OSError when
    the address cannot be bound; OptionError; InvalidArgumentError for TLS' files.
    """
    stop = stop or asyncio.Event()
    tls = None if options.fleet_tls is None else FleetTls(options.fleet_tls)
    connect = partial(
        Store,
        options.redis_url,
        password_file=options.redis_password_file,
        timeout_s=options.redis_timeout_s,
    )
    store = connect()
    # Connections of its own: heartbeats that wait behind a burst of admissions would end leases.
    fleet_store = connect(max_connections=4)
    try:
        if not await _first_of(store.wait_until_up(options.redis_start_s), stop):
            return
        parts = make_parts(options, store, fleet_store)
        exporter = Exporter(parts.metrics.registry, parts.metrics.refresh)
        server = await start_server(
            host=options.host,
            port=options.port,
            services=services_of(options, parts),
            error_table=ERROR_TABLE,
            max_concurrent_rpcs=options.max_concurrent_rpcs,
            fleet_tls=tls,
        )
        watching = None if tls is None else asyncio.create_task(tls.files.watch())
        parts.reservations.start()
        if options.prefetch:
            parts.predictor.start()
        try:
            if options.metrics_port is not None:
                await exporter.start(options.host, options.metrics_port)
            health = _Health(server, store)
            await health.look()
            if ready is not None:
                ready(options.host, server.port)
            await _first_of(health.watch(), stop)
        finally:
            if watching is not None:
                await end(watching)
            await exporter.stop()
            await server.stop(_GRACE_S)
            await parts.reservations.stop()
            await parts.predictor.stop()
            await parts.sources.aclose()
    finally:
        await store.close()
        await fleet_store.close()


def run(options: ControlPlaneOptions, *, ready: Callable[[str, int], None] | None = None) -> None:
    """Runs the process until SIGTERM or SIGINT. Raises as `serve`."""
    event_loop.run(_run(options, ready))


async def _run(options: ControlPlaneOptions, ready: Callable[[str, int], None] | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(options, ready=ready, stop=stop)


async def _first_of(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Whether `work` ended (True, or what it raised) before `stop`, which cancels it."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(working)
        await end(stopping)
    if working.cancelled():
        return False
    working.result()
    return True


class _Health:
    """SERVING exactly while Redis takes writes: without them leases end, and nothing is placed."""

    def __init__(self, server: Server, store: Store) -> None:
        self._server = server
        self._store = store
        self._serving: bool | None = None

    async def look(self) -> None:
        try:
            await self._store.check_writable()
            serving = True
        except StoreUnavailableError as error:
            serving = False
            if self._serving is not False:
                log.error("not serving: %s", error.message)
        except Exception:
            serving = False
            if self._serving is not False:
                log.exception("not serving")
        if serving != self._serving:
            self._serving = serving
            await self._server.set_serving(serving)

    async def watch(self) -> None:
        """Never ends by itself."""
        while True:
            await asyncio.sleep(_HEALTH_INTERVAL_S)
            await self.look()
