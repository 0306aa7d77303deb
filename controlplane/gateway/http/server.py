"""uvicorn inside an event loop that is not its own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from chorale.address import bare_host, host_port
from controlplane.gateway.http.connection import Connection

_BACKLOG = 1024
TLS_TIMEOUT_S = 10.0  # for a handshake, and for the other side's goodbye


class HttpServer:
    """Serves `app` on `host`:`port` (0 picks a free port) until it is stopped.

    max_connections: what is over it is answered 503 at once. One that asks nothing is closed soon.
    tls: None: plaintext.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        max_connections: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host = host
        self.port = port
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=max_connections,
            backlog=_BACKLOG,
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises: OSError when the address cannot be bound."""
        listener = _listen(self._host, self.port)
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve([listener]), name="http-server")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise OSError(f"the HTTP server on {self._host}:{self.port} did not start")
            await asyncio.sleep(0.005)

    async def stop(self, grace_s: float) -> None:
        """Takes no more connections, lets requests go on for `grace_s`, then cancels them."""
        if self._task is None:
            return
        self._server.should_exit = True
        _, pending = await asyncio.wait([self._task], timeout=grace_s)
        if pending:
            await self.kill()

    async def kill(self) -> None:
        """Ends every request and connection at once."""
        if self._task is None:
            return
        self._server.should_exit = True
        self._server.force_exit = True
        for task in tuple(self._server.server_state.tasks):
            task.cancel()
        for connection in tuple(self._server.server_state.connections):
            transport: asyncio.Transport | None = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()  # a client that does not read would be waited for
        await self._task


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with bounds on TLS: it leaves the event loop's 60 s for a handshake, in
        which connections that say nothing hold all file descriptors."""
        config = self.config
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            return Connection(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        timeout_s = None if config.ssl is None else TLS_TIMEOUT_S
        self.servers = [
            await loop.create_server(
                connection,
                sock=listener,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=timeout_s,
                ssl_shutdown_timeout=timeout_s,
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # signals are the process's business


def _listen(host: str, port: int) -> socket.socket:
    bare = bare_host(host)
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    both = bare == "::" and socket.has_dualstack_ipv6()  # as gRPC listens there
    try:
        return socket.create_server(
            (bare, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        raise OSError(f"cannot listen on {host_port(host, port)}: {error}") from error
