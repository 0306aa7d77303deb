"""TLS of the gateway's two servers, by one certificate that may be renewed while they serve."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from chorale.watched import Watched
from controlplane.errors import OptionError

_grpc: Any = grpc  # its stubs lack what renews certificates


@dataclass(frozen=True, slots=True, eq=False)
class _Certificate:
    for_grpc: Any
    for_http: ssl.SSLContext


class Tls:
    """cert_file: the certificate and those between it and its authority, in PEM. key_file: its
    private key, without a passphrase.

    Raises: OptionError.
    """

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._files = cert_file, key_file
        try:
            self.files = Watched(self._files, self._read)
        except OSError as error:
            raise OptionError("tls_cert_file", f"{error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise OptionError("tls_cert_file", str(error)) from error
        self._given = self.files.value

    def grpc_credentials(self) -> grpc.ServerCredentials:
        return _grpc.dynamic_ssl_server_credentials(self._given.for_grpc, self._newer)

    def http_context(self) -> ssl.SSLContext:
        """Whose connections take the certificate of the time at which they are opened."""
        context = self._given.for_http

        def take_newest(connection: Any, server_name: str | None, _: ssl.SSLContext) -> None:
            del server_name
            connection.context = self.files.value.for_http

        context.sni_callback = take_newest
        return context

    def _newer(self) -> Any:
        """For gRPC, at each handshake, in a thread of its own: None when nothing is new."""
        newest = self.files.value
        if newest is self._given:
            return None
        self._given = newest
        return newest.for_grpc

    def _read(self) -> _Certificate:
        cert_file, key_file = self._files
        context = _read_context(cert_file, key_file)
        pair = key_file.read_bytes(), cert_file.read_bytes()
        return _Certificate(_grpc.ssl_server_certificate_configuration([pair]), context)


def _read_context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """Raises: OSError, ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A passphrase would be asked for on a terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        why = error.reason or str(error)
        raise ValueError(
            f"{cert_file} and {key_file} are not a certificate and its private key in PEM, "
            f"without a passphrase: {why}"
        ) from error
    return context
