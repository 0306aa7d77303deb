"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_ADDRESS = "127.0.0.1:50051"

Address = Annotated[
    str,
    typer.Option("--address", envvar="CHORALE_ADDRESS", help="HOST:PORT of the gateway's gRPC."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout; errors too.")
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", envvar="CHORALE_TIMEOUT", min=0.001, help="Seconds to wait for the answer."
    ),
]
