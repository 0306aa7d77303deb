"""A Prometheus endpoint for servers that speak no HTTP otherwise: GET /metrics, nothing else.

Not for clients: it needs prometheus_client, which servers have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from chorale.address import bare_host, host_port

log = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 8192
_MAX_CONNECTIONS = 32
_TIMEOUT_S = 10.0


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The body and its content type. accept: the request's header, "" where there was none."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class Exporter:
    """refresh: awaited before each answer, to bring what the registry shows up to date; an error of
    it is an answer 503. Belongs to one event loop. A connection answers one request, in seconds."""

    def __init__(
        self,
        registry: CollectorRegistry,
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._registry = registry
        self._refresh = refresh
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listens; `port` 0 picks a free one, which `self.port` tells.

        Raises: OSError when the address cannot be bound.
        """
        try:
            self._server = await asyncio.start_server(
                self._serve, bare_host(host) or None, port, limit=_MAX_HEAD_BYTES
            )
        except OSError as error:
            raise OSError(
                f"cannot listen on {host_port(host, port)} for metrics: {error}"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Ends every connection. Idempotent."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            if len(self._open) > _MAX_CONNECTIONS:
                return
            async with asyncio.timeout(_TIMEOUT_S):
                writer.write(await self._answer(reader))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, ValueError):
            pass  # a client that is slow, gone, or speaks no HTTP
        finally:
            self._open.discard(task)
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError:
            return _response("431 Request Header Fields Too Large", b"the head is too long\n")
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        if rest.split(" ")[0].partition("?")[0] != "/metrics":
            return _response("404 Not Found", b"only /metrics is here\n")
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"only GET\n", "Allow: GET, HEAD\r\n")
        try:
            if self._refresh is not None:
                await self._refresh()
        except Exception as error:
            log.warning("metrics cannot be had: %s", error)
            return _response("503 Service Unavailable", b"not now\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        body, content_type = exposition(self._registry, headers.get("accept", ""))
        answer = _response("200 OK", body, content_type=content_type)
        return answer if method == "GET" else answer[: -len(body)]


def _response(
    status: str, body: bytes, more: str = "", *, content_type: str = "text/plain; charset=utf-8"
) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode("latin-1") + body
