"""What a gateway is started with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from chorale.fleet_tls_files import FleetTlsFiles
from controlplane.gateway.recovery import RecoveryLimits


def _nothing(grpc_port: int, http_port: int) -> None:
    del grpc_port, http_port


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Durations in seconds, sizes in bytes.

    control_plane: HOST:PORT.
    grpc_port, http_port: 0 picks a free one.
    max_concurrent_requests: generations at once, over gRPC and HTTP together; as many proxied
    calls beside them, and texts to cut into tokens, up to 256.
    http_registry: whether adapters can be loaded and unloaded over HTTP. None: where the gateway
    listens on a loopback address, as HTTP is often opened to those who may only generate.
    allowed_hosts: names that HTTP requests may be for besides this machine's own and addresses, as
    AllowedHosts takes them. Checked where there are some, and on a loopback address.
    allowed_origins: web pages whose scripts may call over HTTP, as checked_origins takes them.
    api_keys_file: the API keys that callers must have, as controlplane.gateway.access.key_file
    reads it; None: everybody may do everything.
    tls_cert_file, tls_key_file: of both servers, in PEM; None: they speak plaintext.
    fleet_tls: how control and data planes are reached; None: in plaintext.
    http_timeout_s: deadline of each HTTP request, as HTTP clients tell none.
    drain_s: how long running requests may go on once it is to stop. Of that, new ones are taken
    for the first tenth, up to 5 s: what is in front needs a moment to see that it does not serve.
    ready: called with the bound gRPC and HTTP ports once both listen.
    """

    control_plane: str = "127.0.0.1:50050"
    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 8000
    max_concurrent_requests: int = 1024
    max_body_bytes: int = 8 * 1024 * 1024
    http_registry: bool | None = None
    allowed_hosts: Sequence[str] = ()
    allowed_origins: Sequence[str] = ()
    api_keys_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    fleet_tls: FleetTlsFiles | None = None
    http_timeout_s: float = 600.0
    drain_s: float = 2.0
    recovery: RecoveryLimits = field(default_factory=RecoveryLimits)
    ready: Callable[[int, int], None] = _nothing

    @property
    def accepting_s(self) -> float:
        return min(5.0, self.drain_s / 10)

    @property
    def serves_http_registry(self) -> bool:
        return self._is_on_loopback if self.http_registry is None else self.http_registry

    @property
    def checks_host(self) -> bool:
        return self._is_on_loopback or bool(self.allowed_hosts)

    @property
    def _is_on_loopback(self) -> bool:
        host = self.host.strip("[]")
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False
