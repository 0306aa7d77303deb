"""The options of `chorale up`, and the command line of each of its parts."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chorale.address import bare_host, host_port
from controlplane.cli.errors import UsageError
from controlplane.cli.supervisor import demo_assets, ports
from controlplane.cli.supervisor.process import Part, python_module
from storage.machine import num_cores

LOOPBACK = "127.0.0.1"
_MAX_PORT = 65_535
# Stop phases: what serves requests, then what it reports to.
EDGE, CORE = 0, 1


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What `chorale up` was asked for. Sizes in bytes; None leaves a part its own default."""

    data_dir: Path
    host: str
    grpc_port: int
    http_port: int
    http_registry: bool | None = None
    allowed_hosts: Sequence[str] = ()
    allowed_origins: Sequence[str] = ()
    api_keys_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    metrics_port: int | None = None
    num_data_planes: int
    redis_url: str | None
    model: str | None
    model_name: str | None
    adapter_roots: Sequence[Path]
    allowed_sources: Sequence[str] = ()
    private_hosts: Sequence[str] = ()
    max_blob_bytes: int | None = None
    device: str
    dtype: str
    pool_bytes: int | None
    host_cache_bytes: int | None
    disk_cache_bytes: int | None
    max_context_tokens: int | None
    ttft_slo: float | None = None
    tool_call_format: str = "auto"
    prefix_cache_per_tenant: bool = False
    prefetch: bool = True
    prefetch_bytes_per_s: int | None = None
    num_threads: int | None
    tensor_parallel: int | None = None
    speculative_tokens: int | None = None
    drain_s: float = 2.0


@dataclass(frozen=True)
class Addresses:
    """Where the parts listen. The control plane is for this machine's own parts only."""

    host: str
    grpc_port: int
    http_port: int
    control_plane_port: int

    @property
    def control_plane(self) -> str:
        return f"{LOOPBACK}:{self.control_plane_port}"

    @property
    def grpc(self) -> str:
        return host_port(self.host, self.grpc_port)

    @property
    def http(self) -> str:
        return host_port(self.host, self.http_port)

    @property
    def http_from_here(self) -> str:
        """An address that listens on every interface is reached by the loopback one."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(bare_host(self.host), self.host)
        return host_port(host, self.http_port)


def claim_addresses(options: UpOptions) -> Addresses:
    """Raises: PortInUseError and its like, before anything is started."""
    host = options.host
    if options.grpc_port == options.http_port != 0:
        raise UsageError(
            "PORTS_EQUAL",
            f"--grpc-port and --http-port are both {options.grpc_port}: give two different ones",
            metadata={"port": str(options.grpc_port)},
        )
    metrics_ports = _claim_metrics_ports(options)
    grpc_port = ports.claim("--grpc-port", host, options.grpc_port, metrics_ports)
    http_port = ports.claim("--http-port", host, options.http_port, {grpc_port, *metrics_ports})
    taken = {grpc_port, http_port, *metrics_ports}
    return Addresses(host, grpc_port, http_port, ports.free_port(LOOPBACK, taken))


def _claim_metrics_ports(options: UpOptions) -> set[int]:
    if options.metrics_port is None:
        return set()
    last = options.metrics_port + options.num_data_planes
    if last > _MAX_PORT:
        raise UsageError(
            "METRICS_PORT_INVALID",
            f"--metrics-port {options.metrics_port}: the control plane and "
            f"{options.num_data_planes} data planes take the ports up to {last}; the highest is "
            f"{_MAX_PORT}",
            metadata={"port": str(options.metrics_port)},
        )
    claimed = range(options.metrics_port, last + 1)
    if {options.grpc_port, options.http_port} & set(claimed):
        raise UsageError(
            "PORTS_EQUAL",
            f"--metrics-port {options.metrics_port}: the ports up to {last} are for metrics, and "
            "--grpc-port or --http-port is one of them: give other ones",
            metadata={"port": str(options.metrics_port)},
        )
    return {ports.claim("--metrics-port", LOOPBACK, port) for port in claimed}


def adapter_roots(options: UpOptions) -> list[str]:
    """The directories that adapters may come from, absolute."""
    if options.adapter_roots:
        return [str(root.absolute()) for root in options.adapter_roots]
    demo = demo_assets.find()
    return [str(Path.cwd()), *([str(demo / "adapters")] if demo else [])]


def control_plane(options: UpOptions, addresses: Addresses, redis_url: str) -> Part:
    command = [
        *python_module("controlplane.cli.main"),
        "control-plane",
        *(f"--host={LOOPBACK}", f"--port={addresses.control_plane_port}"),
        *_metrics_flag(options, 0),
        *_source_flags(options),
        f"--blob-dir={options.data_dir.absolute() / 'blobs'}",
    ]
    if options.max_blob_bytes is not None:
        command.append(f"--max-blob-bytes={options.max_blob_bytes}")
    if options.prefix_cache_per_tenant:
        command.append("--prefix-cache-per-tenant")
    command.append("--prefetch" if options.prefetch else "--no-prefetch")
    if options.prefetch_bytes_per_s is not None:
        command.append(f"--prefetch-bytes-per-s={options.prefetch_bytes_per_s}")
    # A URL may hold a password, and every user of the machine can read command lines.
    environment = {"CHORALE_REDIS": redis_url}
    if options.redis_url is None:  # the variable is about another Redis
        environment["CHORALE_REDIS_PASSWORD_FILE"] = ""
    return Part("control-plane", command, environment, stop_phase=CORE)


def gateway(options: UpOptions, addresses: Addresses) -> Part:
    command = [
        *python_module("controlplane.cli.main"),
        "gateway",
        *(f"--host={addresses.host}", f"--grpc-port={addresses.grpc_port}"),
        *(f"--http-port={addresses.http_port}", f"--control-plane={addresses.control_plane}"),
    ]
    if options.http_registry is not None:
        command.append("--http-registry" if options.http_registry else "--no-http-registry")
    command += [f"--allow-host={name}" for name in options.allowed_hosts]
    command += [f"--allow-origin={origin}" for origin in options.allowed_origins]
    files = {
        "--api-keys-file": options.api_keys_file,
        "--tls-cert-file": options.tls_cert_file,
        "--tls-key-file": options.tls_key_file,
    }
    command += [f"{flag}={path.absolute()}" for flag, path in files.items() if path is not None]
    command.append(f"--drain-timeout={options.drain_s}")
    return Part("gateway", command, stop_phase=EDGE, drain_s=options.drain_s)


def data_planes(options: UpOptions, addresses: Addresses, disk_cache: Path) -> dict[str, Part]:
    """By data plane id. Raises: NoSuchFileError when no model is named and there is no demo's."""
    model = options.model or str(demo_assets.model_dir())
    model_name = options.model_name or (None if options.model else demo_assets.MODEL_NAME)
    command = [
        *python_module("dataplane.main"),
        f"--model={model}",
        f"--control-plane={addresses.control_plane}",
        *(f"--host={LOOPBACK}", "--port=0"),
        *(f"--device={options.device}", f"--dtype={options.dtype}"),
        f"--tool-call-format={options.tool_call_format}",
        *_source_flags(options),
        f"--disk-cache-dir={disk_cache}",
        f"--drain-timeout={options.drain_s}",
    ]
    optional = {
        "--model-name": model_name,
        "--pool-bytes": options.pool_bytes,
        "--host-cache-bytes": options.host_cache_bytes,
        "--disk-cache-bytes": options.disk_cache_bytes,
        "--max-context-tokens": options.max_context_tokens,
        "--ttft-slo": options.ttft_slo,
        "--num-threads": _num_threads(options),
        "--tensor-parallel": options.tensor_parallel,
        "--speculative-tokens": options.speculative_tokens,
    }
    command += [f"{flag}={value}" for flag, value in optional.items() if value is not None]
    prefix = _id_prefix(options)
    return {
        f"{prefix}{index}": Part(
            f"data-plane-{index}",
            [*command, f"--data-plane-id={prefix}{index}", *_metrics_flag(options, index + 1)],
            stop_phase=EDGE,
            drain_s=options.drain_s,
        )
        for index in range(options.num_data_planes)
    }


def _metrics_flag(options: UpOptions, part: int) -> list[str]:
    """part: 0 is the control plane, 1 the first data plane."""
    first = options.metrics_port
    return [] if first is None else [f"--metrics-port={first + part}"]


def _source_flags(options: UpOptions) -> list[str]:
    """Where adapters may come from: the same for the control plane and the data planes."""
    return [
        *(f"--adapter-root={root}" for root in adapter_roots(options)),
        *(f"--allow-source={prefix}" for prefix in options.allowed_sources),
        *(f"--allow-private-host={host}" for host in options.private_hosts),
    ]


def _num_threads(options: UpOptions) -> int | None:
    """Several data planes share the processors; one alone takes what its engine likes best."""
    if options.num_threads is not None or options.num_data_planes == 1:
        return options.num_threads
    return max(1, num_cores() // options.num_data_planes)


def _id_prefix(options: UpOptions) -> str:
    """Data planes of several `up` on one Redis must not share ids."""
    if options.redis_url is None:
        return "data-plane-"
    return f"{socket.gethostname()[:64]}-{secrets.token_hex(3)}-"
