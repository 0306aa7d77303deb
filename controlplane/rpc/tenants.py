"""TenantService, and what data planes tell of tenants' tokens."""

from __future__ import annotations

from typing import Any

import grpc

from chorale.bearer import check_bearer
from chorale.v1 import fleet_pb2
from chorale.v1 import tenant_pb2 as pb
from chorale.v1.tenant_pb2_grpc import TenantServiceServicer
from controlplane.tenants.limits import TenantLimits
from controlplane.tenants.settlement import Settlement
from controlplane.tenants.tenants import Tenants

Context = grpc.aio.ServicerContext[Any, Any]


class TenantHandlers(TenantServiceServicer):
    def __init__(self, tenants: Tenants, *, token: str) -> None:
        self._tenants = tenants
        self._token = token

    async def SetTenant(
        self, request: pb.SetTenantRequest, context: Context
    ) -> pb.SetTenantResponse:
        check_bearer(context.invocation_metadata(), self._token)
        limits = _limits_from_pb(request.tenant.limits)
        await self._tenants.set(request.tenant.name, limits)
        return pb.SetTenantResponse(tenant=_tenant_to_pb(request.tenant.name, limits))

    async def GetTenant(
        self, request: pb.GetTenantRequest, context: Context
    ) -> pb.GetTenantResponse:
        check_bearer(context.invocation_metadata(), self._token)
        view = await self._tenants.get(request.name)
        return pb.GetTenantResponse(
            tenant=_tenant_to_pb(request.name, view.limits),
            is_default=view.is_default,
            available_requests=view.available_requests,
            available_tokens=view.available_tokens,
            num_running=view.num_running,
        )

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: Context
    ) -> pb.ListTenantsResponse:
        check_bearer(context.invocation_metadata(), self._token)
        found = await self._tenants.all()
        return pb.ListTenantsResponse(
            tenants=[_tenant_to_pb(name, limits) for name, limits in found.items()]
        )

    async def RemoveTenant(
        self, request: pb.RemoveTenantRequest, context: Context
    ) -> pb.RemoveTenantResponse:
        check_bearer(context.invocation_metadata(), self._token)
        await self._tenants.remove(request.name)
        return pb.RemoveTenantResponse()


def settlement_from_pb(settlement: fleet_pb2.Settlement) -> Settlement:
    return Settlement.of(
        settlement.number, ((each.tenant, each.num_tokens) for each in settlement.unused)
    )


def _limits_from_pb(limits: pb.TenantLimits) -> TenantLimits:
    given = {field.name: value for field, value in limits.ListFields()}
    return TenantLimits(**given)


def _tenant_to_pb(name: str, limits: TenantLimits) -> pb.Tenant:
    given: dict[str, Any] = {each: getattr(limits, each) for each in limits.__struct_fields__}
    return pb.Tenant(name=name, limits=pb.TenantLimits(**given))
