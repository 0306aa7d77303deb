"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_ADDRESS = "127.0.0.1:50051"

AdapterName = Annotated[str, typer.Argument(metavar="NAME", help="An adapter's name.")]
AdapterReference = Annotated[
    str, typer.Argument(metavar="NAME", help="An adapter's name, NAME@VERSION or an alias.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="CHORALE_DATA_DIR",
        help="Of the `chorale up` whose fleet token to use when the environment gives none. "
        "Left out: $XDG_STATE_HOME/chorale.",
    ),
]

Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="CHORALE_ADDRESS",
        help="HOST:PORT of the gateway's gRPC; grpcs://HOST:PORT over TLS, fleet://HOST:PORT as "
        "the planes reach each other.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout; errors too.")
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        envvar="CHORALE_TIMEOUT",
        min=0.001,
        max=1e9,  # gRPC takes much more for a time that has passed
        help="Seconds to wait for the answer.",
    ),
]
GrpcPort = Annotated[
    int,
    typer.Option(
        "--grpc-port", envvar="CHORALE_GRPC_PORT", min=0, max=65535, help="0 picks a free one."
    ),
]
HttpPort = Annotated[
    int,
    typer.Option(
        "--http-port", envvar="CHORALE_HTTP_PORT", min=0, max=65535, help="0 picks a free one."
    ),
]
AllowSource = Annotated[
    list[str] | None,
    typer.Option(
        envvar="CHORALE_ALLOW_SOURCE",
        metavar="PREFIX",
        help="Network source that adapters may come from, as hf://ORG, https://HOST/PATH or "
        "s3://BUCKET; repeatable. None: no network source.",
    ),
]
AllowPrivateHost = Annotated[
    list[str] | None,
    typer.Option(
        envvar="CHORALE_ALLOW_PRIVATE_HOST",
        metavar="HOST[:PORT]",
        help="Host of an allowed source that may lie inside this network; repeatable.",
    ),
]
HttpRegistry = Annotated[
    bool | None,
    typer.Option(
        "--http-registry/--no-http-registry",
        envvar="CHORALE_HTTP_REGISTRY",
        show_default=False,
        help="Whether adapters can be loaded and unloaded over HTTP. Left out: only where --host "
        "is a loopback address.",
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        envvar="CHORALE_ALLOW_HOST",
        metavar="NAME",
        help="Name that HTTP requests may be for besides localhost, as chorale.example.com, "
        "*.example.com or *; repeatable. Checked where --host is a loopback address or this is "
        "given.",
    ),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        envvar="CHORALE_ALLOW_ORIGIN",
        metavar="ORIGIN",
        help="Web pages whose scripts may call over HTTP, as https://app.example.com, or * for "
        "all; repeatable. Left out: none.",
    ),
]
ApiKeysFile = Annotated[
    Path | None,
    typer.Option(
        "--api-keys-file",
        envvar="CHORALE_API_KEYS_FILE",
        help="File of the API keys that callers must have, as `chorale keys` writes it; read again "
        "when it changes. Left out: everybody may do everything.",
    ),
]
TlsCertFile = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert-file",
        envvar="CHORALE_TLS_CERT_FILE",
        help="Certificate chain in PEM, for gRPC and HTTP; read again when it changes. Left out: "
        "plaintext.",
    ),
]
TlsKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--tls-key-file",
        envvar="CHORALE_TLS_KEY_FILE",
        help="Its private key in PEM, without a passphrase.",
    ),
]
FleetTlsCertFile = Annotated[
    Path | None,
    typer.Option(
        "--fleet-tls-cert-file",
        envvar="CHORALE_FLEET_TLS_CERT_FILE",
        help="Certificate chain in PEM for mutual TLS between the planes, for the DNS name "
        "chorale-fleet; read again when it changes. Left out: plaintext between them.",
    ),
]
FleetTlsKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--fleet-tls-key-file",
        envvar="CHORALE_FLEET_TLS_KEY_FILE",
        help="Its private key in PEM, without a passphrase.",
    ),
]
FleetTlsCaFile = Annotated[
    Path | None,
    typer.Option(
        "--fleet-tls-ca-file",
        envvar="CHORALE_FLEET_TLS_CA_FILE",
        help="Certificates in PEM of the authorities whose certificates make members of the fleet.",
    ),
]
DrainTimeout = Annotated[
    float,
    typer.Option(
        "--drain-timeout",
        envvar="CHORALE_DRAIN_TIMEOUT",
        min=0.0,
        max=86_400.0,
        help="Seconds that running requests have to finish when it is to stop.",
    ),
]
New = Annotated[
    bool, typer.Option("--new", help="Refuse a NAME that exists, whatever its content.")
]
KeepCurrent = Annotated[
    bool,
    typer.Option("--keep-current", help="Leave the current version of a NAME that exists."),
]
Wait = Annotated[
    bool,
    typer.Option("--wait", help="Until it is there, with its progress; needs the fleet token."),
]
WaitTimeout = Annotated[
    float, typer.Option("--wait-timeout", min=0.1, help="Seconds to wait for that.")
]
SourceToken = Annotated[
    str,
    typer.Option(
        "--source-token",
        envvar="CHORALE_SOURCE_TOKEN",
        show_default=False,
        help="Your token for a private source; better in the variable than on the command line.",
    ),
]
Prefetch = Annotated[
    bool,
    typer.Option(
        "--prefetch/--no-prefetch",
        envvar="CHORALE_PREFETCH",
        help="Whether to predict which adapters will be asked for, and bring them nearer before.",
    ),
]
PrefixCachePerTenant = Annotated[
    bool,
    typer.Option(
        "--prefix-cache-per-tenant/--no-prefix-cache-per-tenant",
        envvar="CHORALE_PREFIX_CACHE_PER_TENANT",
        help="Whether only requests of the same tenant find what is cached of a prompt.",
    ),
]
PREFETCH_BYTES_PER_S_HELP = "What predictions may ask of each data plane, in bytes per second."
