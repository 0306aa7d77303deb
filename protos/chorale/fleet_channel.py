"""Channels inside the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc

from chorale.fleet_tls import FLEET_NAME, FleetCertificate, FleetTls

Options = Sequence[tuple[str, int | str]]


def open_fleet_channel(address: str, options: Options, tls: FleetTls | None) -> grpc.aio.Channel:
    """A channel to HOST:PORT; belongs to the event loop that runs. tls: None: plaintext."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return cast("grpc.aio.Channel", _RenewedChannel(address, options, tls))


class _Connected:
    """A channel by one certificate, closed when it is retired and its last call has ended."""

    def __init__(self, address: str, options: Options, certificate: FleetCertificate) -> None:
        self.certificate = certificate
        self.channel = grpc.aio.secure_channel(
            address,
            certificate.for_channel,
            options=(*options, ("grpc.ssl_target_name_override", FLEET_NAME)),
        )
        self.methods: dict[int, Any] = {}
        self.num_calls = 0


class _RenewedChannel:
    """What stubs use of a channel. gRPC's own has one certificate for its life, so a renewed one
    takes a channel of its own; calls that run go on over the one that they began on."""

    def __init__(self, address: str, options: Options, tls: FleetTls) -> None:
        self._address = address
        self._options = options
        self._tls = tls
        self._newest = _Connected(address, options, tls.certificate)
        self._retired: set[_Connected] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._num_methods = 0

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        return self._method("unary_unary", args, options)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return self._method("unary_stream", args, options)

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        return self._method("stream_unary", args, options)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        return self._method("stream_stream", args, options)

    async def close(self, grace: float | None = None) -> None:
        """Calls that run are cancelled, after `grace` seconds."""
        every = [self._newest, *self._retired]
        self._retired.clear()
        await asyncio.gather(*(one.channel.close(grace) for one in every), *self._closing)

    async def __aenter__(self) -> _RenewedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _method(self, kind: str, args: Any, options: Any) -> Callable[..., Any]:
        number = self._num_methods = self._num_methods + 1

        def call(*call_args: Any, **call_options: Any) -> Any:
            over = self._current()
            method = over.methods.get(number)
            if method is None:
                method = over.methods[number] = getattr(over.channel, kind)(*args, **options)
            made = method(*call_args, **call_options)
            over.num_calls += 1
            made.add_done_callback(lambda _: self._ended(over))
            return made

        return call

    def _current(self) -> _Connected:
        newest = self._newest
        if newest.certificate is not self._tls.certificate:
            self._newest = _Connected(self._address, self._options, self._tls.certificate)
            self._retired.add(newest)
            self._close_idle(newest)
        return self._newest

    def _ended(self, over: _Connected) -> None:
        over.num_calls -= 1
        self._close_idle(over)

    def _close_idle(self, over: _Connected) -> None:
        if over.num_calls == 0 and over in self._retired:
            self._retired.remove(over)
            closing = asyncio.get_running_loop().create_task(over.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
