"""Mutual TLS between the planes: every server of the fleet and every channel to one.

All certificates of the fleet are for one name, FLEET_NAME, whatever the addresses are: data planes
announce container ids and addresses that nobody knows beforehand. Who has one is a member; which
member it is, tickets and the fleet token say.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from chorale.errors import InvalidArgumentError, PermissionDeniedError
from chorale.fleet_tls_files import FleetTlsFiles
from chorale.watched import Watched

FLEET_NAME = "chorale-fleet"

_grpc: Any = grpc  # its stubs lack what renews certificates
_NAMES = "x509_subject_alternative_name"
_MAX_FLIGHTS = 8  # more than any version of TLS has


@dataclass(frozen=True, slots=True, eq=False)
class FleetCertificate:
    """What the files held at one time, as gRPC's servers and channels take it."""

    for_server: Any
    for_channel: grpc.ChannelCredentials


class FleetTls:
    """`files` is to be watched, or looked at before a channel is used, so that renewed files count
    for connections that are opened then.

    Raises: InvalidArgumentError (FLEET_TLS_INVALID) for files that do not serve.
    """

    def __init__(self, files: FleetTlsFiles) -> None:
        paths = [Path(one) for one in (files.cert_file, files.key_file, files.ca_file)]
        try:
            self.files = Watched(paths, lambda: _read(*paths))
        except (OSError, ValueError) as error:
            why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            raise InvalidArgumentError("FLEET_TLS_INVALID", f"--fleet-tls-…-file: {why}") from error
        self._given = self.files.value

    @property
    def certificate(self) -> FleetCertificate:
        return self.files.value

    def server_credentials(self) -> grpc.ServerCredentials:
        """For one server. Who has no certificate of the fleet's authorities does not connect."""
        return _grpc.dynamic_ssl_server_credentials(
            self._given.for_server, self._newer, require_client_authentication=True
        )

    def _newer(self) -> Any:
        """For gRPC, at each handshake, in a thread of its own: None when nothing is new."""
        newest = self.files.value
        if newest is self._given:
            return None
        self._given = newest
        return newest.for_server


def check_member(context: Any) -> None:
    """Whether the caller's certificate is the fleet's: an authority may also sign others.

    Raises: PermissionDeniedError.
    """
    if FLEET_NAME.encode() not in context.auth_context().get(_NAMES, ()):
        raise PermissionDeniedError(
            "NOT_OF_THE_FLEET",
            f"the certificate that was shown is not for {FLEET_NAME}: show one that has it as a "
            "DNS name (subjectAltName)",
        )


def way_out(details: str) -> str:
    """What to do about a connection that failed with gRPC's `details`; empty where TLS has no part
    in it."""
    said = details.lower()
    if "wrong_version_number" in said:
        return (
            "; that side speaks plaintext: start it with --fleet-tls-cert-file, …-key-file and "
            "…-ca-file, or this one without"
        )
    if "certificate_verify_failed" in said or "hostname verification" in said:
        return (
            f"; the certificate of that side has expired, is not for {FLEET_NAME}, or is by none "
            "of the authorities in --fleet-tls-ca-file"
        )
    if "socket closed" in said or "connection reset" in said:
        return (
            "; if that side speaks TLS, this one needs --fleet-tls-cert-file, …-key-file and "
            "…-ca-file, too; where it has them, the log of that side says what is wrong with its "
            "certificate"
        )
    return ""


def is_mismatch(details: str) -> bool:
    """Whether one side certainly speaks no TLS, or shows what the other does not take."""
    said = details.lower()
    return any(
        word in said
        for word in ("wrong_version_number", "certificate_verify_failed", "hostname verification")
    )


def _read(cert_file: Path, key_file: Path, ca_file: Path) -> FleetCertificate:
    """Raises: OSError, ValueError."""
    chain, key, authorities = (one.read_bytes() for one in (cert_file, key_file, ca_file))
    server, channel = _contexts(cert_file, key_file, ca_file, authorities)
    try:
        _shake_hands(server, channel)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or str(error)
        raise ValueError(
            f"{cert_file} is not a certificate for {FLEET_NAME} that {ca_file} vouches for: {why}; "
            f"it has to have DNS:{FLEET_NAME} as subjectAltName, and to be good for servers and "
            "clients"
        ) from error
    return FleetCertificate(
        _grpc.ssl_server_certificate_configuration([(key, chain)], authorities),
        grpc.ssl_channel_credentials(authorities, key, chain),
    )


def _contexts(
    cert_file: Path, key_file: Path, ca_file: Path, authorities: bytes
) -> Sequence[ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    channel = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, channel):
        try:
            # A passphrase would be asked for on a terminal.
            context.load_cert_chain(cert_file, key_file, password="")
        except ssl.SSLError as error:
            raise ValueError(
                f"{cert_file} and {key_file} are not a certificate and its private key in PEM, "
                f"without a passphrase: {error.reason or error}"
            ) from error
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"{ca_file} holds no certificates in PEM") from error
    return server, channel


def _shake_hands(server: ssl.SSLContext, channel: ssl.SSLContext) -> None:
    """With itself, in memory: it shows whether others with such files would take this certificate.

    Raises: ssl.SSLError.
    """
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        channel.wrap_bio(down, up, server_hostname=FLEET_NAME),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(_MAX_FLIGHTS):
        for end in tuple(ends):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                ends.remove(end)
    assert not ends, "a handshake in memory waits for nobody else"
