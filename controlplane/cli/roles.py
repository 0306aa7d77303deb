"""`chorale control-plane`, `gateway` and `data-plane`: one process of the system each."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chorale.address import host_port
from chorale.fleet_tls_files import FleetTlsFiles, fleet_tls_files
from controlplane.cli.errors import BlockedError
from controlplane.cli.failures import reported
from controlplane.cli.options import (
    PREFETCH_BYTES_PER_S_HELP,
    AllowHost,
    AllowOrigin,
    AllowPrivateHost,
    AllowSource,
    ApiKeysFile,
    DrainTimeout,
    FleetTlsCaFile,
    FleetTlsCertFile,
    FleetTlsKeyFile,
    GrpcPort,
    HttpPort,
    HttpRegistry,
    Prefetch,
    PrefixCachePerTenant,
    TlsCertFile,
    TlsKeyFile,
)


class LogLevel(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


Level = Annotated[
    LogLevel, typer.Option("--log-level", envvar="CHORALE_LOG_LEVEL", case_sensitive=False)
]


def control_plane(
    redis: Annotated[str, typer.Option(envvar="CHORALE_REDIS", help="URL of the Redis.")],
    redis_password_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_REDIS_PASSWORD_FILE",
            help="File with the password of the Redis, where the URL names none.",
        ),
    ] = None,
    fleet_token: Annotated[
        str,
        typer.Option(
            envvar="CHORALE_FLEET_TOKEN",
            show_default=False,
            help="Secret that data planes show; better given by the environment.",
        ),
    ] = "",
    fleet_token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_FLEET_TOKEN_FILE",
            help="File that holds it; not read when --fleet-token is given.",
        ),
    ] = None,
    fleet_tls_cert_file: FleetTlsCertFile = None,
    fleet_tls_key_file: FleetTlsKeyFile = None,
    fleet_tls_ca_file: FleetTlsCaFile = None,
    host: Annotated[str, typer.Option(envvar="CHORALE_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="CHORALE_PORT", min=0, max=65535)] = 50050,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="CHORALE_METRICS_PORT",
            min=0,
            max=65535,
            help="HTTP port of Prometheus' /metrics; left out: none.",
        ),
    ] = None,
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="CHORALE_ADAPTER_ROOT",
            help="Directory that adapters may come from; repeatable. None: no adapter may.",
        ),
    ] = None,
    allow_source: AllowSource = None,
    allow_private_host: AllowPrivateHost = None,
    source_check_ttl: Annotated[
        float,
        typer.Option(
            envvar="CHORALE_SOURCE_CHECK_TTL",
            min=0.0,
            help="Seconds for which a private source's yes to a token holds; 0: ask each time.",
        ),
    ] = 30.0,
    blob_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_BLOB_DIR", help="Where uploads are kept. Left out: none are taken."
        ),
    ] = None,
    max_blob_bytes: Annotated[
        int, typer.Option(envvar="CHORALE_MAX_BLOB_BYTES", min=1, help="All uploads together.")
    ] = 32 << 30,
    max_adapter_bytes: Annotated[
        int, typer.Option(envvar="CHORALE_MAX_ADAPTER_BYTES", min=1, help="Largest weights file.")
    ] = 4 << 30,
    lease: Annotated[
        float,
        typer.Option(
            envvar="CHORALE_LEASE",
            min=0.1,
            help="Seconds of silence that end a lease.",
        ),
    ] = 5.0,
    max_queue_factor: Annotated[
        float,
        typer.Option(
            envvar="CHORALE_MAX_QUEUE_FACTOR",
            min=0.01,
            help="Refuse requests when this many batches wait at every data plane.",
        ),
    ] = 4.0,
    max_priority: Annotated[
        int,
        typer.Option(
            envvar="CHORALE_MAX_PRIORITY",
            min=-10,
            max=10,
            help="Highest priority that requests may ask for.",
        ),
    ] = 0,
    prefix_cache_per_tenant: PrefixCachePerTenant = False,
    prefetch: Prefetch = True,
    prefetch_bytes_per_s: Annotated[
        int,
        typer.Option(envvar="CHORALE_PREFETCH_BYTES_PER_S", min=1, help=PREFETCH_BYTES_PER_S_HELP),
    ] = 128 << 20,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Run one control plane: registry, fleet, admission, prefetch. Any number may share a Redis."""
    with _serving(log_level, host_port(host, port)):
        from controlplane.main import run
        from controlplane.options import ControlPlaneOptions

        _secret("redis_password_file", redis_password_file)  # tells now that it does not serve
        run(
            ControlPlaneOptions(
                redis_url=redis,
                redis_password_file=redis_password_file,
                fleet_token=fleet_token or _secret("fleet_token_file", fleet_token_file),
                fleet_tls=_fleet_tls(fleet_tls_cert_file, fleet_tls_key_file, fleet_tls_ca_file),
                host=host,
                port=port,
                metrics_port=metrics_port,
                adapter_roots=adapter_root or [],
                allowed_sources=allow_source or [],
                private_hosts=allow_private_host or [],
                source_check_ttl_s=source_check_ttl,
                blob_dir=blob_dir,
                max_blob_bytes=max_blob_bytes,
                max_adapter_bytes=max_adapter_bytes,
                lease_s=lease,
                max_queue_factor=max_queue_factor,
                max_priority=max_priority,
                prefix_cache_per_tenant=prefix_cache_per_tenant,
                prefetch=prefetch,
                prefetch_bytes_per_s=prefetch_bytes_per_s,
            ),
            ready=lambda host, port: print(
                f"ready control-plane grpc={host_port(host, port)}", flush=True
            ),
        )


def gateway(
    control_plane: Annotated[
        str, typer.Option(envvar="CHORALE_CONTROL_PLANE", help="HOST:PORT of the control plane.")
    ] = "127.0.0.1:50050",
    host: Annotated[str, typer.Option(envvar="CHORALE_HOST")] = "127.0.0.1",
    grpc_port: GrpcPort = 50051,
    http_port: HttpPort = 8000,
    max_concurrent_requests: Annotated[
        int,
        typer.Option(
            envvar="CHORALE_MAX_CONCURRENT_REQUESTS", min=1, help="Generations at once; more fail."
        ),
    ] = 1024,
    http_registry: HttpRegistry = None,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    api_keys_file: ApiKeysFile = None,
    tls_cert_file: TlsCertFile = None,
    tls_key_file: TlsKeyFile = None,
    fleet_tls_cert_file: FleetTlsCertFile = None,
    fleet_tls_key_file: FleetTlsKeyFile = None,
    fleet_tls_ca_file: FleetTlsCaFile = None,
    http_timeout: Annotated[
        float,
        typer.Option(
            envvar="CHORALE_HTTP_TIMEOUT",
            min=0.001,
            help="Seconds that an HTTP request may take, its stream included.",
        ),
    ] = 600.0,
    drain_timeout: DrainTimeout = 2.0,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Run one gateway: the address for clients, over gRPC and HTTP. Any number may run.

    SIGTERM and SIGINT stop it when running requests have finished, or after --drain-timeout; a
    second one ends them at once.
    """
    with _serving(log_level, f"{host_port(host, grpc_port)} and {host_port(host, http_port)}"):
        from controlplane.gateway.main import run
        from controlplane.gateway.options import GatewayOptions

        def ready(grpc_port: int, http_port: int) -> None:
            grpc, http = host_port(host, grpc_port), host_port(host, http_port)
            print(f"ready gateway grpc={grpc} http={http}", flush=True)

        run(
            GatewayOptions(
                control_plane=control_plane,
                host=host,
                grpc_port=grpc_port,
                http_port=http_port,
                max_concurrent_requests=max_concurrent_requests,
                http_registry=http_registry,
                allowed_hosts=allow_host or [],
                allowed_origins=allow_origin or [],
                api_keys_file=api_keys_file,
                tls_cert_file=tls_cert_file,
                tls_key_file=tls_key_file,
                fleet_tls=_fleet_tls(fleet_tls_cert_file, fleet_tls_key_file, fleet_tls_ca_file),
                http_timeout_s=http_timeout,
                drain_s=drain_timeout,
                ready=ready,
            )
        )


def data_plane(context: typer.Context) -> None:
    """Run one data plane: a base model and its adapters. All arguments go to it as they are."""
    # The planes meet only through protos: this process becomes the other plane's program.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "dataplane.main", *context.args])


def install(app: typer.Typer) -> None:
    app.command("control-plane")(control_plane)
    app.command("gateway")(gateway)
    passed_on = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command("data-plane", add_help_option=False, context_settings=passed_on)(data_plane)


def _fleet_tls(
    cert_file: Path | None, key_file: Path | None, ca_file: Path | None
) -> FleetTlsFiles | None:
    """Raises: OptionError where some of them are given and not all."""
    from controlplane.errors import OptionError

    try:
        return fleet_tls_files(cert_file, key_file, ca_file)
    except ValueError as error:
        raise OptionError("fleet_tls", str(error)) from error


def _secret(option: str, path: Path | None) -> str:
    """Empty without a path. Raises: OptionError."""
    if path is None:
        return ""
    from chorale.secret_file import read_secret
    from controlplane.errors import OptionError

    try:
        return read_secret(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise OptionError(option, f"{path}: {why}") from error


@contextmanager
def _serving(level: LogLevel, addresses: str) -> Generator[None]:
    import logging

    logging.basicConfig(level=level.value, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with reported(with_traceback=True):
        try:
            yield
        except OSError as error:
            raise BlockedError(
                "CANNOT_LISTEN",
                f"cannot listen on {addresses}: {error}; give another --host or port",
                metadata={"addresses": addresses},
            ) from error
