"""Whether the whole of `chorale up` answers, asked the way a client would."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, cast

POLL_S = 0.05
CALL_TIMEOUT_S = 2.0


async def wait_until_serving(grpc_address: str, data_plane_ids: Collection[str]) -> None:
    """Returns when the gateway is SERVING and all these data planes have joined."""
    # Only here: importing grpc takes longer than starting every part.
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from chorale.v1 import fleet_pb2, fleet_pb2_grpc

    options = [
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 100),
        ("grpc.enable_http_proxy", 0),
    ]
    async with grpc.aio.insecure_channel(grpc_address, options=options) as channel:
        health = cast("Any", health_pb2_grpc.HealthStub(channel))
        fleet = cast("Any", fleet_pb2_grpc.FleetServiceStub(channel))
        serving = health_pb2.HealthCheckResponse.SERVING
        while True:
            try:
                check = await health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_TIMEOUT_S)
                if check.status == serving:
                    found = await fleet.ListDataPlanes(
                        fleet_pb2.ListDataPlanesRequest(), timeout=CALL_TIMEOUT_S
                    )
                    if set(data_plane_ids) <= {one.data_plane_id for one in found.data_planes}:
                        return
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(POLL_S)
