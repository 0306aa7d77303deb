"""Options of the control plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chorale.fleet_tls_files import FleetTlsFiles
from controlplane.errors import OptionError

MAX_PRIORITY = 10


@dataclass(frozen=True, slots=True)
class ControlPlaneOptions:
    """fleet_token: secret that data planes must know; without it nobody gets ticket keys.
    redis_password_file: for a `redis_url` that names no password; None: none.
    fleet_tls: how it is reached, by members of the fleet alone; None: in plaintext, by anybody.
    metrics_port: where Prometheus finds /metrics, 0 picks a free one; None: nowhere.
    adapter_roots: directories that adapters may be registered from; none: nothing can be.
    allowed_sources, private_hosts: network sources that may be used, as SourcePolicy takes them.
    source_check_ttl_s: how long a yes of a private source holds for a token. blob_dir: where
    uploads are kept; None: uploads are refused. max_blob_bytes: all of them together.
    max_adapter_bytes: largest weights file. lease_s: time without a heartbeat after which a data
    plane is taken for dead; heartbeats are asked for five times in it.
    max_queue_factor: requests are refused (RESOURCE_EXHAUSTED) when every data plane has this many
    times max_running requests waiting. max_priority: the highest GenerateRequest.priority that is
    honoured, -10 to 10; nobody authenticates tenants here, so 0 keeps anyone from going before
    others. prefix_cache_per_tenant: whether data planes keep what they cache of a tenant's prompts
    from the others. prefetch: whether demand is counted and adapters are brought nearer by
    predictions; prefetch_bytes_per_s: what these may ask of each data plane. ticket_ttl_s: how long
    a ticket may be used. redis_timeout_s: how long one command, and redis_start_s: how long the
    first connection may take.
    """

    redis_url: str
    fleet_token: str = field(repr=False)
    redis_password_file: Path | None = None
    fleet_tls: FleetTlsFiles | None = None
    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int | None = None
    adapter_roots: Sequence[Path] = ()
    allowed_sources: Sequence[str] = ()
    private_hosts: Sequence[str] = ()
    source_check_ttl_s: float = 30.0
    blob_dir: Path | None = None
    max_blob_bytes: int = 32 << 30
    max_adapter_bytes: int = 4 << 30
    lease_s: float = 5.0
    max_queue_factor: float = 4.0
    max_priority: int = 0
    prefix_cache_per_tenant: bool = False
    prefetch: bool = True
    prefetch_bytes_per_s: int = 128 << 20
    ticket_ttl_s: float = 30.0
    redis_timeout_s: float = 2.0
    redis_start_s: float = 10.0
    max_concurrent_rpcs: int = 4096

    def __post_init__(self) -> None:
        """Raises: OptionError."""
        if not self.fleet_token or not self.fleet_token.isascii() or " " in self.fleet_token:
            raise OptionError(
                "fleet_token",
                "must be non-empty ASCII without spaces (CHORALE_FLEET_TOKEN, or in the file that "
                "CHORALE_FLEET_TOKEN_FILE names)",
            )
        if not 0 <= self.port <= 65535:
            raise OptionError("port", f"must be 0 to 65535, not {self.port}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise OptionError("metrics_port", f"must be 0 to 65535, not {self.metrics_port}")
        for name in (
            "max_adapter_bytes",
            "max_blob_bytes",
            "lease_s",
            "max_queue_factor",
            "prefetch_bytes_per_s",
            "ticket_ttl_s",
            "redis_timeout_s",
            "max_concurrent_rpcs",
        ):
            if not getattr(self, name) > 0:
                raise OptionError(name, f"must be greater than 0, not {getattr(self, name)}")
        if abs(self.max_priority) > MAX_PRIORITY:
            raise OptionError("max_priority", f"must be -10 to 10, not {self.max_priority}")
        if not self.source_check_ttl_s >= 0:
            raise OptionError(
                "source_check_ttl_s", f"must be at least 0, not {self.source_check_ttl_s}"
            )
        if self.lease_s < 0.1:
            raise OptionError("lease_s", f"must be at least 0.1, not {self.lease_s}")

    @property
    def heartbeat_interval_s(self) -> float:
        return self.lease_s / 5

    @property
    def generations_hold_s(self) -> float:
        """How long a generation counts as running after a report of it."""
        return 2 * self.lease_s
