"""`chorale health`: whether a server serves, for the health checks of containers."""

from __future__ import annotations

from typing import Any, cast

import typer

from controlplane.cli.connection import way_to
from controlplane.cli.failures import reported
from controlplane.cli.options import DEFAULT_ADDRESS, Address, Timeout


def health(address: Address = DEFAULT_ADDRESS, timeout: Timeout = 5.0) -> None:
    """Ask a gateway, control plane or data plane whether it serves: exit code 0 when it does."""
    with reported(address=address):
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        from chorale.connection import open_channel
        from chorale.errors import UnavailableError
        from chorale.status import from_rpc_error

        way = way_to(address)
        with open_channel(way.address, way.credentials, way.server_name) as channel:
            stub = cast("Any", health_pb2_grpc.HealthStub(channel))
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise UnavailableError("NOT_SERVING", f"{address} answers {name}")
    print(name)


def install(app: typer.Typer) -> None:
    app.command("health")(health)
