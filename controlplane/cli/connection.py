"""How commands reach the gateway: the API key that they show, and whose certificates they trust."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli.errors import UsageError
from controlplane.cli.failures import reported

if TYPE_CHECKING:
    import grpc

    from chorale.client import Client

KEY_VARIABLE = "CHORALE_API_KEY"
FLEET = "fleet://"


@dataclass(frozen=True)
class _Given:
    api_key_file: Path | None = None
    tls_ca_file: Path | None = None
    tls_server_name: str = ""


_given: ContextVar[_Given] = ContextVar("given")


def common(
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_API_KEY_FILE",
            help="File with the API key that a gateway asks for; $CHORALE_API_KEY goes before it.",
        ),
    ] = None,
    tls_ca_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_TLS_CA_FILE",
            help="Certificates in PEM of the authorities to trust, for a gateway with TLS. Left "
            "out: gRPC's own list, where --address is grpcs://…",
        ),
    ] = None,
    tls_server_name: Annotated[
        str,
        typer.Option(
            envvar="CHORALE_TLS_SERVER_NAME",
            help="Name that the gateway's certificate is for, where --address has another.",
        ),
    ] = "",
) -> None:
    """Takes the options that stand before the command."""
    _given.set(_Given(api_key_file, tls_ca_file, tls_server_name))


@contextmanager
def connected(address: str, timeout: float, *, as_json: bool = False) -> Generator[Client]:
    """A client, for the whole of a command: what fails inside is `reported`."""
    with reported(as_json=as_json, address=address), connect(address, timeout=timeout) as client:
        yield client


def connect(address: str, *, timeout: float | None = 60.0, tenant: str = "") -> Client:
    """A client of the gateway at `address`. Raises: UsageError, InvalidArgumentError."""
    # Here, as gRPC takes longer to import than most commands to run.
    from chorale.client import Client

    way = way_to(address)
    return Client(
        way.address,
        tenant=tenant,
        timeout=timeout,
        api_key=api_key(),
        credentials=way.credentials,
        server_name=way.server_name,
    )


def api_key() -> str:
    """Empty for none. Raises: UsageError (API_KEY_FILE_INVALID)."""
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        return key
    path = _given.get(_Given()).api_key_file
    if path is None:
        return ""
    from chorale.secret_file import read_secret

    try:
        return read_secret(path)
    except (OSError, ValueError) as error:
        raise _unusable("API_KEY_FILE_INVALID", "--api-key-file", path, error) from error


def tls_ca_file() -> Path | None:
    """One that can be read. Raises: UsageError (TLS_CA_FILE_INVALID)."""
    path = _given.get(_Given()).tls_ca_file
    if path is not None:
        try:
            path.open("rb").close()
        except OSError as error:
            raise _unusable("TLS_CA_FILE_INVALID", "--tls-ca-file", path, error) from error
    return path


@dataclass(frozen=True)
class Way:
    """What a channel is opened with."""

    address: str
    credentials: grpc.ChannelCredentials | None
    server_name: str


def way_to(address: str) -> Way:
    """address: HOST:PORT, grpcs://HOST:PORT or fleet://HOST:PORT, which is over mutual TLS where
    $CHORALE_FLEET_TLS_… name the files of it, and plaintext else.

    Raises: UsageError (TLS_CA_FILE_INVALID, FLEET_TLS_INVALID).
    """
    if address.startswith(FLEET):
        return _way_in_fleet(address.removeprefix(FLEET))
    return Way(address, credentials(), _given.get(_Given()).tls_server_name)


def _way_in_fleet(address: str) -> Way:
    from chorale.fleet_tls_files import from_environment

    try:
        files = from_environment()
    except ValueError as error:
        raise UsageError("FLEET_TLS_INVALID", str(error)) from error
    if files is None:
        return Way(address, None, "")
    from chorale.errors import InvalidArgumentError
    from chorale.fleet_tls import FLEET_NAME, FleetTls

    try:
        return Way(address, FleetTls(files).certificate.for_channel, FLEET_NAME)
    except InvalidArgumentError as error:
        raise UsageError(error.reason, error.message) from error


def credentials() -> grpc.ChannelCredentials | None:
    """Of TLS, None where the address decides. Raises: UsageError (TLS_CA_FILE_INVALID)."""
    path = tls_ca_file()
    if path is None:
        return None
    import grpc

    return grpc.ssl_channel_credentials(path.read_bytes())


def _unusable(reason: str, option: str, path: Path, error: OSError | ValueError) -> UsageError:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return UsageError(reason, f"{option} {path}: {why}", metadata={"path": str(path)})
