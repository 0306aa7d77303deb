"""Connections that go to no address inside the own network, unless the operator says so.

A name is resolved here, all its addresses are checked, and the connection goes to a checked
address: what the name stands for a moment later changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, cast

import httpcore2

from storage.errors import SourceNotAllowedError, excerpt
from storage.sources.policy import SourcePolicy
from storage.threads import LoneThreads

_NAT64 = IPv6Network("64:ff9b::/96")
_MAX_ADDRESSES = 8
_READ_BYTES = 1 << 20
_HEAD_PIECE_BYTES = 16 << 10
_MAX_HEAD_BYTES = 256 << 10


class GuardedStream(httpcore2.AsyncNetworkStream):
    """Bounds what comes before the body of an answer, and reads it in small pieces: each is parsed
    without a pause, and informational answers (100 Continue) could come without end. The body is
    read as it is there, since each piece has its price in the event loop, whatever its size."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner
        self._head_bytes: int | None = 0  # None: the head is complete

    def begin_body(self) -> None:
        self._head_bytes = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Raises: httpcore2's errors, RemoteProtocolError for a head beyond the bound."""
        if self._head_bytes is None:
            return await self._inner.read(max(max_bytes, _READ_BYTES), timeout)
        data = await self._inner.read(min(max_bytes, _HEAD_PIECE_BYTES), timeout)
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise httpcore2.RemoteProtocolError(f"no answer within {_MAX_HEAD_BYTES} bytes")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._head_bytes = 0
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        return GuardedStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """What an HTTP connection pool opens its connections with."""

    def __init__(self, policy: SourcePolicy) -> None:
        self._policy = policy
        self._inner: httpcore2.AsyncNetworkBackend = cast("Any", httpcore2).AnyIOBackend()
        self._threads = LoneThreads()  # a resolver that hangs blocks nobody else
        self._lookups: dict[str, asyncio.Future[Any]] = {}

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises: SourceNotAllowedError; httpcore2's ConnectError and ConnectTimeout."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"{host} was not resolved in time") from None
        if not self._policy.may_be_private(host, port):
            for address in addresses:
                if not is_public(address):
                    raise SourceNotAllowedError(
                        f"{excerpt(host)} lies at {address}, inside this network; its operator can "
                        f"open it with --allow-private-host {host}:{port}",
                        metadata={"host": host[:200], "address": address},
                    )
        problem: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses[:_MAX_ADDRESSES]:
            try:
                return GuardedStream(
                    await self._inner.connect_tcp(
                        address, port, timeout, local_address, socket_options
                    )
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                problem = error
        raise problem

    async def _resolve(self, host: str, port: int) -> list[str]:
        """All addresses of `host`; callers at the same time share one look-up."""
        lookup = self._lookups.get(host)
        if lookup is None:
            work = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            lookup = asyncio.ensure_future(self._threads.run(f"resolver:{host}", work))
            self._lookups[host] = lookup
            lookup.add_done_callback(lambda done: self._forget(host, done))
        try:
            found = await asyncio.shield(lookup)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved: {error}") from None
        return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))

    def _forget(self, host: str, lookup: asyncio.Future[Any]) -> None:
        del self._lookups[host]
        if not lookup.cancelled():
            lookup.exception()  # read, as all who waited may have given up


def is_public(address: str) -> bool:
    """Whether the whole internet can be meant: not private, loopback, link-local, multicast or
    reserved, nor a way of IPv6 to write such an IPv4 address."""
    known = ip_address(address)
    if isinstance(known, IPv6Address):
        embedded = _embedded(known)
        if embedded is not None:
            return is_public(str(embedded))
        if known.teredo is not None or known.is_site_local:
            return False
    return known.is_global and not known.is_multicast and not known.is_reserved


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None
