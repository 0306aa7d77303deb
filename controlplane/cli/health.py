"""`chorale health`: whether a server serves, for the health checks of containers."""

from __future__ import annotations

from typing import Any, cast

import typer

from controlplane.cli.connection import way_to
from controlplane.cli.failures import reported
from controlplane.cli.options import DEFAULT_ADDRESS, Address, Timeout

_CHECK = "/grpc.health.v1.Health/Check"
# HealthCheckResponse as it is sent: protobuf would take longer to import than all else to run.
_STATUSES = {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}


def health(address: Address = DEFAULT_ADDRESS, timeout: Timeout = 5.0) -> None:
    """Ask a gateway, control plane or data plane whether it serves: exit code 0 when it does."""
    with reported(address=address):
        import grpc

        from chorale.connection import open_channel
        from chorale.errors import UnavailableError

        way = way_to(address)
        with open_channel(way.address, way.credentials, way.server_name) as channel:
            check = cast("Any", channel.unary_unary(_CHECK))  # untyped
            try:
                answer: bytes = check(b"", timeout=timeout)
            except grpc.RpcError as error:
                from chorale.status import from_rpc_error

                raise from_rpc_error(error) from None
        name = _STATUSES.get(answer, "UNKNOWN")
        if name != "SERVING":
            raise UnavailableError("NOT_SERVING", f"{address} answers {name}")
    print(name)


def install(app: typer.Typer) -> None:
    app.command("health")(health)
