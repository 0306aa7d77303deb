"""What stands between the gateway and others: TLS and API keys, as its options ask for them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from chorale.errors import InvalidArgumentError
from chorale.fleet_tls import FleetTls
from chorale.v1 import admission_pb2
from chorale.watched import Watched
from controlplane.errors import OptionError
from controlplane.gateway.access.caller import tenant_for
from controlplane.gateway.access.guard import Guard
from controlplane.gateway.access.key_file import read_keys
from controlplane.gateway.access.keys import Keys
from controlplane.gateway.options import GatewayOptions
from controlplane.gateway.tls import Tls


class Door(Collector):
    """fleet_tls: of the channels to what is behind; None: plaintext.

    Raises: OptionError, InvalidArgumentError for files that do not serve.
    """

    def __init__(self, options: GatewayOptions) -> None:
        self._files: dict[str, Watched[Any]] = {}
        self._tls = self._open_tls(options)
        self.fleet_tls = None if options.fleet_tls is None else FleetTls(options.fleet_tls)
        if self.fleet_tls is not None:
            self._files["fleet_tls"] = self.fleet_tls.files
        keys = self._read_keys(options)
        self.guard = None if keys is None else Guard(lambda: keys.value)

    def grpc_credentials(self) -> grpc.ServerCredentials | None:
        return None if self._tls is None else self._tls.grpc_credentials()

    def http_context(self) -> ssl.SSLContext | None:
        return None if self._tls is None else self._tls.http_context()

    async def watch(self) -> None:
        """Reads files again when they change, until it is cancelled."""
        await asyncio.gather(*(one.watch() for one in self._files.values()))

    def collect(self) -> Iterator[Any]:
        if self.guard is not None:
            yield from self.guard.collect()
        if self._files:
            family = GaugeMetricFamily(
                "chorale_gateway_stale_files",
                "Whether a file cannot be read any more, and what it held before is used.",
                labels=["file"],
            )
            for name, watched in self._files.items():
                family.add_metric([name], watched.is_stale)
            yield family

    def _open_tls(self, options: GatewayOptions) -> Tls | None:
        if options.tls_cert_file is None and options.tls_key_file is None:
            return None
        if options.tls_cert_file is None:
            raise OptionError("tls_cert_file", "is missing, and tls_key_file is given")
        if options.tls_key_file is None:
            raise OptionError("tls_key_file", "is missing, and tls_cert_file is given")
        tls = Tls(options.tls_cert_file, options.tls_key_file)
        self._files["tls"] = tls.files
        return tls

    def _read_keys(self, options: GatewayOptions) -> Watched[Keys] | None:
        path = options.api_keys_file
        if path is None:
            return None
        try:
            keys = Watched([path], lambda: read_keys(path))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise OptionError("api_keys_file", f"{path}: {why}") from error
        self._files["api_keys"] = keys
        return keys


def admit_for_caller(request: bytes) -> bytes:
    """An AdmitRequest with the tenant that its caller's key has.

    Raises: InvalidArgumentError, PermissionDeniedError.
    """
    try:
        admit = admission_pb2.AdmitRequest.FromString(request)
    except DecodeError as error:
        raise InvalidArgumentError(
            "REQUEST_MALFORMED", f"the request is malformed: {str(error)[:200]}"
        ) from error
    admit.tenant = tenant_for(admit.tenant)
    return admit.SerializeToString()
