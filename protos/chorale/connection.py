"""Opening a channel to a server's address, with what each call is to carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from chorale.channel import CHANNEL_OPTIONS

Metadata = tuple[tuple[str, str], ...]
PLAIN, SECURE = "grpc://", "grpcs://"


def open_channel(
    address: str, credentials: grpc.ChannelCredentials | None = None, server_name: str = ""
) -> grpc.Channel:
    """address: HOST:PORT; as grpcs://HOST:PORT it is reached over TLS.

    credentials: for TLS, with any address; None: TLS trusts gRPC's own list of authorities, or the
    one in the file that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names. server_name: that the certificate
    must be for; empty: the address's.
    """
    target, credentials = _parts(address, credentials)
    if credentials is None:
        return grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(target, credentials, options=_named(server_name))


def open_aio_channel(
    address: str, credentials: grpc.ChannelCredentials | None = None, server_name: str = ""
) -> grpc.aio.Channel:
    """See `open_channel`; inside the event loop that is to use it."""
    target, credentials = _parts(address, credentials)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=_named(server_name))


def carrying(channel: Any, metadata: Metadata) -> Any:
    """`channel` for stubs, each of whose calls has `metadata` too."""
    return _Carrying(channel, metadata) if metadata else channel


def _named(server_name: str) -> tuple[tuple[str, int | str], ...]:
    named = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    return (*CHANNEL_OPTIONS, *named)


def _parts(
    address: str, credentials: grpc.ChannelCredentials | None
) -> tuple[str, grpc.ChannelCredentials | None]:
    if address.startswith(SECURE):
        return address.removeprefix(SECURE), credentials or grpc.ssl_channel_credentials()
    return address.removeprefix(PLAIN), credentials


class _Carrying:
    """What stubs use of a channel. Not gRPC's interceptors: behind these, calls that stream end
    differently when they are cancelled."""

    def __init__(self, channel: Any, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata

    def __getattr__(self, kind: str) -> Any:
        connect = getattr(self._channel, kind)
        if kind not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            return connect
        return lambda *args, **options: self._carrying(connect(*args, **options))

    def _carrying(self, call: Any) -> Callable[..., Any]:
        def with_all(*args: Any, metadata: Any = None, **options: Any) -> Any:
            return call(*args, metadata=(*(metadata or ()), *self._metadata), **options)

        return with_all
