"""`chorale up`: all parts on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.failures import reported
from controlplane.cli.options import (
    PREFETCH_BYTES_PER_S_HELP,
    AllowHost,
    AllowOrigin,
    AllowPrivateHost,
    AllowSource,
    ApiKeysFile,
    DrainTimeout,
    GrpcPort,
    HttpPort,
    HttpRegistry,
    Prefetch,
    PrefixCachePerTenant,
    TlsCertFile,
    TlsKeyFile,
)
from controlplane.cli.supervisor.data_dir import default_data_dir


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class ToolCallFormat(StrEnum):
    AUTO = "auto"
    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral_args"
    QWEN3_CODER = "qwen3_coder"


def up(
    model: Annotated[
        str | None,
        typer.Option(
            envvar="CHORALE_MODEL",
            help="Hugging Face model directory or hub id; left out, the demo model.",
        ),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(envvar="CHORALE_MODEL_NAME", help="What requests call the base model."),
    ] = None,
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="CHORALE_ADAPTER_ROOT",
            help="Directory that adapters may come from; repeatable. Left out: the current "
            "directory and the demo adapters.",
        ),
    ] = None,
    allow_source: AllowSource = None,
    allow_private_host: AllowPrivateHost = None,
    max_blob_bytes: Annotated[
        int | None,
        typer.Option(
            envvar="CHORALE_MAX_BLOB_BYTES", min=1, help="Uploaded adapters in the data dir."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_DATA_DIR",
            help="Registry, caches and logs. Left out: $XDG_STATE_HOME/chorale.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(envvar="CHORALE_HOST", help="Address that the gateway listens on.")
    ] = "127.0.0.1",
    grpc_port: GrpcPort = 50051,
    http_port: HttpPort = 8000,
    http_registry: HttpRegistry = None,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    api_keys_file: ApiKeysFile = None,
    tls_cert_file: TlsCertFile = None,
    tls_key_file: TlsKeyFile = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="CHORALE_METRICS_PORT",
            min=1,
            max=65535,
            help="Port of /metrics of the control plane; those of the data planes follow. Left "
            "out: only the gateway has one, on its HTTP port.",
        ),
    ] = None,
    data_planes: Annotated[
        int, typer.Option(envvar="CHORALE_DATA_PLANES", min=1, max=64, help="How many to run.")
    ] = 1,
    redis: Annotated[
        str | None,
        typer.Option(
            envvar="CHORALE_REDIS", help="URL of a running Redis; left out, one in the data dir."
        ),
    ] = None,
    device: Annotated[Device, typer.Option(envvar="CHORALE_DEVICE")] = Device.AUTO,
    dtype: Annotated[Dtype, typer.Option(envvar="CHORALE_DTYPE")] = Dtype.AUTO,
    pool_bytes: Annotated[
        int | None,
        typer.Option(envvar="CHORALE_POOL_BYTES", min=1, help="Of each data plane's page pool."),
    ] = None,
    host_cache_bytes: Annotated[
        int | None,
        typer.Option(envvar="CHORALE_HOST_CACHE_BYTES", min=0, help="Adapters in host memory."),
    ] = None,
    disk_cache_bytes: Annotated[
        int | None,
        typer.Option(envvar="CHORALE_DISK_CACHE_BYTES", min=0, help="Adapters in the data dir."),
    ] = None,
    max_context_tokens: Annotated[
        int | None,
        typer.Option(
            envvar="CHORALE_MAX_CONTEXT_TOKENS", min=1, help="Left out: what the model allows."
        ),
    ] = None,
    ttft_slo: Annotated[
        float | None,
        typer.Option(
            "--ttft-slo",
            envvar="CHORALE_TTFT_SLO",
            min=0.0,
            help="Objective for the first token, in seconds, of requests that name none.",
        ),
    ] = None,
    tool_call_format: Annotated[
        ToolCallFormat,
        typer.Option(
            envvar="CHORALE_TOOL_CALL_FORMAT",
            help="How the model writes calls of functions; auto: as its chat template tells.",
        ),
    ] = ToolCallFormat.AUTO,
    prefix_cache_per_tenant: PrefixCachePerTenant = False,
    prefetch: Prefetch = True,
    prefetch_bytes_per_s: Annotated[
        int | None,
        typer.Option(envvar="CHORALE_PREFETCH_BYTES_PER_S", min=1, help=PREFETCH_BYTES_PER_S_HELP),
    ] = None,
    num_threads: Annotated[
        int | None,
        typer.Option(
            envvar="CHORALE_NUM_THREADS",
            min=1,
            help="Processor threads of each data plane. Left out: an equal share.",
        ),
    ] = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(
            envvar="CHORALE_TENSOR_PARALLEL",
            min=1,
            help="GPUs that share each layer of a data plane; on CPU processes. Left out: 1.",
        ),
    ] = None,
    speculative_tokens: Annotated[
        int | None,
        typer.Option(
            envvar="CHORALE_SPECULATIVE_TOKENS",
            min=0,
            max=8,
            help="The most tokens that a step guesses ahead for a sequence. Left out: none.",
        ),
    ] = None,
    drain_timeout: DrainTimeout = 2.0,
) -> None:
    """Run everything on this machine, until SIGINT or SIGTERM.

    Prints one line `ready grpc=HOST:PORT http=HOST:PORT` on stdout when it can serve. Each part is
    a process of its own, logs to DATA_DIR/logs, and is started again when it dies. A second signal
    does not wait for running requests.
    """
    with reported():
        from controlplane.cli.supervisor import supervise
        from controlplane.cli.supervisor.plan import UpOptions

        supervise.up(
            UpOptions(
                data_dir=data_dir or default_data_dir(),
                host=host,
                grpc_port=grpc_port,
                http_port=http_port,
                http_registry=http_registry,
                allowed_hosts=allow_host or [],
                allowed_origins=allow_origin or [],
                api_keys_file=api_keys_file,
                tls_cert_file=tls_cert_file,
                tls_key_file=tls_key_file,
                metrics_port=metrics_port,
                num_data_planes=data_planes,
                redis_url=redis,
                model=model,
                model_name=model_name,
                adapter_roots=adapter_root or [],
                allowed_sources=allow_source or [],
                private_hosts=allow_private_host or [],
                max_blob_bytes=max_blob_bytes,
                device=device.value,
                dtype=dtype.value,
                pool_bytes=pool_bytes,
                host_cache_bytes=host_cache_bytes,
                disk_cache_bytes=disk_cache_bytes,
                max_context_tokens=max_context_tokens,
                ttft_slo=ttft_slo,
                tool_call_format=tool_call_format.value,
                prefix_cache_per_tenant=prefix_cache_per_tenant,
                prefetch=prefetch,
                prefetch_bytes_per_s=prefetch_bytes_per_s,
                num_threads=num_threads,
                tensor_parallel=tensor_parallel,
                speculative_tokens=speculative_tokens,
                drain_s=drain_timeout,
            )
        )


def install(app: typer.Typer) -> None:
    app.command("up")(up)
