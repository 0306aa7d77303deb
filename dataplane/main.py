"""`chorale data-plane`, run as `python -m dataplane.main`: one data plane, frontend and engine.

Exit status: 0 stopped by SIGTERM or SIGINT, 1 the engine was lost while it started, or again and
again, 2 it cannot start as asked.
"""

from __future__ import annotations

import os

os.environ["USE_TORCH"] = "0"  # this process tokenizes only; seen by transformers when imported

import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chorale.fleet_tls_files import FleetTlsFiles, fleet_tls_files
from chorale.secret_file import read_secret
from dataplane.engine_options import MAX_SPECULATIVE_TOKENS, EngineOptions
from dataplane.errors import DataPlaneError
from dataplane.models.locate import locate_model
from dataplane.rpc.engine_process import EngineProcess
from dataplane.signal_exits import SignalExits
from dataplane.text.tool_format import ToolCallFormatName

if TYPE_CHECKING:
    from dataplane.rpc.lifecycle import DataPlaneOptions

app = typer.Typer(add_completion=False)

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_DEFAULTS = EngineOptions(model_dir="", model_name="")


def run(options: DataPlaneOptions) -> int:
    """Serves until told to stop; returns the exit status."""
    from chorale import event_loop
    from chorale.errors import ChoraleError, UnavailableError
    from dataplane.rpc.lifecycle import serve

    try:
        stopped = event_loop.run(serve(options, _print_ready))
    except UnavailableError as error:  # its process died: nothing is wrong with what was asked
        return _fail(error.reason, error.message, status=1)
    except (ChoraleError, DataPlaneError) as error:
        return _fail(error.reason, error.message)
    except OSError as error:
        return _fail("CANNOT_START", str(error))
    if not stopped:
        print(
            "error: ENGINE_LOST: the engine ended again and again; its log says why",
            file=sys.stderr,
        )
    return 0 if stopped else 1


@app.command()
def data_plane(
    model: Annotated[
        str, typer.Option(envvar="CHORALE_MODEL", help="Model directory, or hub id OWNER/NAME.")
    ],
    control_plane: Annotated[
        str, typer.Option(envvar="CHORALE_CONTROL_PLANE", help="HOST:PORT of the control plane.")
    ],
    fleet_token: Annotated[
        str,
        typer.Option(
            envvar="CHORALE_FLEET_TOKEN",
            show_default=False,
            help="Shared with the control plane; better in the variable than on the command line.",
        ),
    ] = "",
    fleet_token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_FLEET_TOKEN_FILE",
            help="File that holds it; not read when --fleet-token is given.",
        ),
    ] = None,
    fleet_tls_cert_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_FLEET_TLS_CERT_FILE",
            help="Certificate chain in PEM for mutual TLS between the planes, for the DNS name "
            "chorale-fleet; read again when it changes. Left out: plaintext between them.",
        ),
    ] = None,
    fleet_tls_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_FLEET_TLS_KEY_FILE",
            help="Its private key in PEM, without a passphrase.",
        ),
    ] = None,
    fleet_tls_ca_file: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_FLEET_TLS_CA_FILE",
            help="Certificates in PEM of the authorities whose certificates make members of the "
            "fleet.",
        ),
    ] = None,
    model_name: Annotated[
        str,
        typer.Option(
            envvar="CHORALE_MODEL_NAME",
            help="What requests call the base model. Left out: the hub id or directory name.",
        ),
    ] = "",
    host: Annotated[str, typer.Option(envvar="CHORALE_HOST", help="To listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="CHORALE_PORT", min=0, max=65535, help="0 picks a free one.")
    ] = 0,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="CHORALE_METRICS_PORT",
            min=0,
            max=65535,
            help="HTTP port of Prometheus' /metrics; left out: none.",
        ),
    ] = None,
    advertise: Annotated[
        str,
        typer.Option(
            envvar="CHORALE_ADVERTISE",
            help="HOST or HOST:PORT where clients and gateways reach this data plane.",
        ),
    ] = "",
    data_plane_id: Annotated[
        str,
        typer.Option(
            envvar="CHORALE_DATA_PLANE_ID", help="Unique in the fleet. Left out: made of host name."
        ),
    ] = "",
    device: Annotated[Device, typer.Option(envvar="CHORALE_DEVICE")] = "auto",
    dtype: Annotated[Dtype, typer.Option(envvar="CHORALE_DTYPE")] = "auto",
    pool_bytes: Annotated[
        int,
        typer.Option(envvar="CHORALE_POOL_BYTES", min=0, help="Page pool; 0: what fits."),
    ] = 0,
    page_tokens: Annotated[
        int, typer.Option(envvar="CHORALE_PAGE_TOKENS", min=1, help="Tokens in a KV block.")
    ] = _DEFAULTS.page_tokens,
    max_running: Annotated[
        int, typer.Option(envvar="CHORALE_MAX_RUNNING", min=1, help="Sequences in one batch.")
    ] = _DEFAULTS.max_running,
    max_batch_tokens: Annotated[
        int, typer.Option(envvar="CHORALE_MAX_BATCH_TOKENS", min=1, help="Tokens in one step.")
    ] = _DEFAULTS.max_batch_tokens,
    speculative_tokens: Annotated[
        int,
        typer.Option(
            envvar="CHORALE_SPECULATIVE_TOKENS",
            min=0,
            max=MAX_SPECULATIVE_TOKENS,
            help="The most tokens of a sequence that a step guesses ahead, from what its prompt "
            "and answer said before; answers stay the same. 0: none.",
        ),
    ] = _DEFAULTS.speculative_tokens,
    host_cache_bytes: Annotated[
        int | None,
        typer.Option(
            envvar="CHORALE_HOST_CACHE_BYTES",
            min=0,
            help="Adapters in host memory. Left out: 1 GiB, or what the memory allows.",
        ),
    ] = None,
    disk_cache_bytes: Annotated[
        int, typer.Option(envvar="CHORALE_DISK_CACHE_BYTES", min=0, help="Adapters on disk.")
    ] = _DEFAULTS.disk_cache_bytes,
    disk_cache_dir: Annotated[
        str, typer.Option(envvar="CHORALE_DISK_CACHE_DIR", help="Where; left out: the engine's.")
    ] = "",
    max_adapter_bytes: Annotated[
        int,
        typer.Option(
            envvar="CHORALE_MAX_ADAPTER_BYTES",
            min=1,
            help="Largest weights file; as the control plane has it.",
        ),
    ] = _DEFAULTS.max_adapter_bytes,
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="CHORALE_ADAPTER_ROOT", help="Directory that adapters may lie in; repeatable."
        ),
    ] = None,
    allow_source: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CHORALE_ALLOW_SOURCE",
            metavar="PREFIX",
            help="Network source that adapters may come from, as hf://ORG or https://HOST; "
            "repeatable.",
        ),
    ] = None,
    allow_private_host: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CHORALE_ALLOW_PRIVATE_HOST",
            metavar="HOST[:PORT]",
            help="Host of an allowed source that may lie inside this network; repeatable.",
        ),
    ] = None,
    max_context_tokens: Annotated[
        int, typer.Option(envvar="CHORALE_MAX_CONTEXT_TOKENS", min=0, help="0: the model's own.")
    ] = 0,
    num_threads: Annotated[
        int,
        typer.Option(envvar="CHORALE_NUM_THREADS", min=0, help="Of the engine; 0: one a core."),
    ] = 0,
    tensor_parallel: Annotated[
        int,
        typer.Option(
            envvar="CHORALE_TENSOR_PARALLEL",
            min=1,
            help="GPUs that share each layer, a process each; on CPU processes that share the "
            "threads. The pool is all of theirs together.",
        ),
    ] = _DEFAULTS.tensor_parallel,
    ttft_slo: Annotated[
        float,
        typer.Option(
            "--ttft-slo",
            envvar="CHORALE_TTFT_SLO",
            min=0.0,
            help="Objective for the first token, in seconds, of requests that name none: they fail "
            "as soon as it is out of reach; 0: nothing.",
        ),
    ] = 0.0,
    cuda_graphs: Annotated[
        bool | None,
        typer.Option(
            "--cuda-graphs/--no-cuda-graphs",
            envvar="CHORALE_CUDA_GRAPHS",
            help="Decode steps captured at the start. Left out: where there is a GPU.",
        ),
    ] = None,
    engine_timeout: Annotated[
        float,
        typer.Option(
            envvar="CHORALE_ENGINE_TIMEOUT",
            min=0.0,
            help="Seconds without a word from the engine after which it is replaced; 0: never. "
            "More than the longest step takes.",
        ),
    ] = 60.0,
    tool_call_format: Annotated[
        ToolCallFormatName,
        typer.Option(
            envvar="CHORALE_TOOL_CALL_FORMAT",
            help="How the model writes calls of functions; auto: as its chat template tells, and "
            "requests with tools are refused where that tells none.",
        ),
    ] = "auto",
    drain_timeout: Annotated[
        float,
        typer.Option(
            envvar="CHORALE_DRAIN_TIMEOUT",
            min=0.0,
            max=86_400.0,
            help="Seconds that open requests have to finish when it is to stop; then gateways "
            "continue them elsewhere.",
        ),
    ] = 2.0,
) -> None:
    """Serves one base model and its adapters over gRPC, as a member of a fleet.

    Prints `ready data-plane ID grpc=HOST:PORT` once it serves and has joined. SIGTERM and SIGINT
    stop it cleanly (exit status 0); 1: the engine was lost while it started, or again and again; 2:
    it cannot start as asked. A second signal gives open requests no more time. An engine that dies
    or hangs is started again.
    """
    exits = SignalExits()  # until the event loop has handlers of its own
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, exits)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # Before anything slow is imported here: the engine has more to import than this process.
    process = None
    try:
        fleet_token = fleet_token or _token_in(fleet_token_file)
        fleet_tls = _fleet_tls(fleet_tls_cert_file, fleet_tls_key_file, fleet_tls_ca_file)
        process = EngineProcess()
        with exits.put_off():  # or there might be a process that `process` does not know of
            process.start()
        model_dir = locate_model(model)
        engine = EngineOptions(
            model_dir=str(model_dir),
            model_name=model_name or _name_of(model, model_dir),
            device=device,
            dtype=dtype,
            pool_bytes=pool_bytes,
            page_tokens=page_tokens,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            speculative_tokens=speculative_tokens,
            max_context_tokens=max_context_tokens,
            num_threads=num_threads,
            cuda_graphs=cuda_graphs,
            tensor_parallel=tensor_parallel,
            host_cache_bytes=host_cache_bytes,
            disk_cache_bytes=disk_cache_bytes,
            disk_cache_dir=disk_cache_dir,
            max_adapter_bytes=max_adapter_bytes,
            adapter_roots=tuple(str(root.resolve()) for root in adapter_root or ()),
            allowed_sources=tuple(allow_source or ()),
            private_hosts=tuple(allow_private_host or ()),
            control_plane=control_plane,
            fleet_token=fleet_token,
            fleet_tls=fleet_tls,
        )
        from dataplane.rpc.lifecycle import DataPlaneOptions

        options = DataPlaneOptions(
            engine=engine,
            control_plane=control_plane,
            fleet_token=fleet_token,
            host=host,
            port=port,
            metrics_port=metrics_port,
            advertise=advertise,
            data_plane_id=data_plane_id,
            ttft_slo_s=ttft_slo,
            engine_timeout_s=engine_timeout,
            drain_s=drain_timeout,
            tool_call_format=tool_call_format,
            first_engine=process,
            spawn_engine=EngineProcess,
        )
        status = run(options)
    except DataPlaneError as error:
        status = _fail(error.reason, error.message)
    except OSError as error:
        status = _fail("CANNOT_START", str(error))
    finally:
        if process is not None:
            process.discard()
    raise typer.Exit(status)


def _name_of(model: str, model_dir: Path) -> str:
    """A directory's own name, or the hub id without its revision ("@" is taken in model names)."""
    return model_dir.name if Path(model).expanduser().is_dir() else model.partition("@")[0]


def _token_in(path: Path | None) -> str:
    """Raises: DataPlaneError."""
    if path is None:
        raise DataPlaneError(
            "FLEET_TOKEN_MISSING",
            "no fleet token: set CHORALE_FLEET_TOKEN, or CHORALE_FLEET_TOKEN_FILE to its file",
        )
    try:
        return read_secret(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DataPlaneError(
            "FLEET_TOKEN_MISSING", f"--fleet-token-file {path}: {why}", {"path": str(path)}
        ) from error


def _fleet_tls(
    cert_file: Path | None, key_file: Path | None, ca_file: Path | None
) -> FleetTlsFiles | None:
    """Raises: DataPlaneError where some of them are given and not all."""
    try:
        return fleet_tls_files(cert_file, key_file, ca_file)
    except ValueError as error:
        raise DataPlaneError("FLEET_TLS_INVALID", str(error)) from error


def _print_ready(data_plane_id: str, address: str) -> None:
    print(f"ready data-plane {data_plane_id} grpc={address}", flush=True)


def _fail(reason: str, message: str, status: int = 2) -> int:
    # It may quote a model's files, which could steer a terminal.
    shown = "".join(c for c in " ".join(message.split()) if c.isprintable())
    print(f"error: {reason}: {shown}", file=sys.stderr, flush=True)
    return status


def main() -> None:
    app(prog_name="chorale data-plane")


if __name__ == "__main__":
    main()
