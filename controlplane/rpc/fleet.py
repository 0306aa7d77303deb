"""FleetService."""

from __future__ import annotations

from typing import Any

import grpc

from chorale.bearer import check_bearer
from chorale.v1 import fleet_pb2 as pb
from chorale.v1.fleet_pb2_grpc import FleetServiceServicer
from controlplane.fleet.directives import Directives
from controlplane.fleet.fleet import Fleet
from controlplane.metrics import ControlPlaneMetrics
from controlplane.prefetch.demand import Demand
from controlplane.rpc import translate
from controlplane.rpc.counters import counters_from_pb
from controlplane.rpc.demand import demand_to_pb
from controlplane.rpc.directives import (
    action_from_pb,
    directive_to_pb,
    tier_from_pb,
    within_from_pb,
)
from controlplane.rpc.outlook import outlook_from_pb
from controlplane.rpc.tenants import settlement_from_pb
from controlplane.tenants.running import Running, Told

Context = grpc.aio.ServicerContext[Any, Any]


class FleetHandlers(FleetServiceServicer):
    def __init__(
        self,
        fleet: Fleet,
        directives: Directives,
        demand: Demand,
        metrics: ControlPlaneMetrics,
        *,
        running: Running,
        token: str,
        lease_s: float,
        heartbeat_interval_s: float,
    ) -> None:
        self._fleet = fleet
        self._directives = directives
        self._demand = demand
        self._metrics = metrics
        self._running = running
        self._token = token
        self._lease_s = lease_s
        self._heartbeat_interval_s = heartbeat_interval_s

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        check_bearer(context.invocation_metadata(), self._token)
        keys, now_ms = await self._fleet.join(
            request.data_plane_id,
            request.incarnation,
            request.endpoint,
            translate.base_model_from_pb(request.base_model),
        )
        return pb.JoinResponse(
            lease=translate.duration(self._lease_s),
            heartbeat_interval=translate.duration(self._heartbeat_interval_s),
            ticket_keys=translate.keys_to_pb(keys),
            now=translate.timestamp(now_ms),
        )

    async def Heartbeat(
        self, request: pb.HeartbeatRequest, context: Context
    ) -> pb.HeartbeatResponse:
        check_bearer(context.invocation_metadata(), self._token)
        with self._metrics.heartbeat():
            keys, directives, now_ms = await self._fleet.heartbeat(
                request.data_plane_id,
                request.incarnation,
                translate.load_from_pb(request.load),
                translate.residency_from_pb(request.residency),
                request.received_directives,
                counters_from_pb(request.load),
                outlook_from_pb(request.load),
                settlement_from_pb(request.settlement),
            )
        return pb.HeartbeatResponse(
            ticket_keys=translate.keys_to_pb(keys),
            directives=[directive_to_pb(each) for each in directives],
            now=translate.timestamp(now_ms),
        )

    async def ReportGenerations(
        self, request: pb.ReportGenerationsRequest, context: Context
    ) -> pb.ReportGenerationsResponse:
        check_bearer(context.invocation_metadata(), self._token)
        await self._running.report(
            [
                Told(each.tenant, each.first_ticket_id, each.ticket_id, each.has_ended)
                for each in request.generations
            ]
        )
        return pb.ReportGenerationsResponse(holds=translate.duration(self._running.holds_s))

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveResponse:
        check_bearer(context.invocation_metadata(), self._token)
        await self._fleet.leave(request.data_plane_id, request.incarnation)
        return pb.LeaveResponse()

    async def ListDataPlanes(
        self, request: pb.ListDataPlanesRequest, context: Context
    ) -> pb.ListDataPlanesResponse:
        planes = await self._fleet.data_planes(with_residency=not request.without_residency)
        return pb.ListDataPlanesResponse(
            data_planes=[translate.data_plane_to_pb(plane) for plane in planes]
        )

    async def DirectAdapter(
        self, request: pb.DirectAdapterRequest, context: Context
    ) -> pb.DirectAdapterResponse:
        check_bearer(context.invocation_metadata(), self._token)
        action = action_from_pb(request.action)
        name, told = await self._directives.send(
            request.name,
            action,
            tier_from_pb(request.tier),
            within_from_pb(request),
            request.data_plane_id,
        )
        self._metrics.directed(action)
        return pb.DirectAdapterResponse(adapter=name, data_plane_ids=told)

    async def ListDemand(
        self, request: pb.ListDemandRequest, context: Context
    ) -> pb.ListDemandResponse:
        return demand_to_pb(await self._demand.view(request.limit))
