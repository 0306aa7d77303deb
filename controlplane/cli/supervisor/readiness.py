"""Whether the whole of `chorale up` answers."""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections.abc import Collection
from typing import Any, cast

POLL_S = 0.05
CALL_TIMEOUT_S = 2.0


async def wait_until_serving(
    control_plane: str, gateway: str, data_plane_ids: Collection[str], *, tls: bool
) -> None:
    """Returns when all these data planes have joined and the gateway serves.

    control_plane: HOST:PORT of its gRPC. gateway: of its HTTP, over TLS or not.
    """
    # Only here: importing grpc takes longer than starting every part.
    import grpc

    from chorale.v1 import fleet_pb2, fleet_pb2_grpc

    options = [
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 100),
        ("grpc.enable_http_proxy", 0),
    ]
    async with grpc.aio.insecure_channel(control_plane, options=options) as channel:
        fleet = cast("Any", fleet_pb2_grpc.FleetServiceStub(channel))
        while True:
            try:
                found = await fleet.ListDataPlanes(
                    fleet_pb2.ListDataPlanesRequest(without_residency=True),
                    timeout=CALL_TIMEOUT_S,
                )
                joined = {one.data_plane_id for one in found.data_planes}
                if set(data_plane_ids) <= joined and await asyncio.to_thread(_serves, gateway, tls):
                    return
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(POLL_S)


def _serves(gateway: str, tls: bool) -> bool:
    """Nothing secret is asked or told, so that its certificate need not name this machine."""
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(gateway, timeout=CALL_TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(gateway, timeout=CALL_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
