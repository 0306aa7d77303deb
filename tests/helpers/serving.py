"""A gRPC server of the project around one servicer, on 127.0.0.1."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from chorale.fleet_tls import FleetTls
from chorale.server import Server, start_server


@asynccontextmanager
async def served(
    service: str,
    add: Callable[[grpc.aio.Server], Any],
    port: int = 0,
    tls: FleetTls | None = None,
) -> AsyncIterator[Server]:
    """service: its full name. add: adds the servicer. port: 0 picks a free one."""
    server = await start_server(
        host="127.0.0.1", port=port, services=[(service, add)], error_table={}, fleet_tls=tls
    )
    try:
        yield server
    finally:
        await server.stop(0)
