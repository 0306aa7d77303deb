"""What tests of quotas ask of a control plane."""

from __future__ import annotations

from typing import Any

from chorale.errors import ChoraleError
from chorale.v1 import admission_pb2 as pb
from chorale.v1 import tenant_pb2
from chorale.v1.tenant_pb2_grpc import TenantServiceStub
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane, failure


def tenants(plane: ControlPlane) -> Any:
    return TenantServiceStub(plane.channel)


async def limit(plane: ControlPlane, name: str, **limits: int) -> None:
    tenant = tenant_pb2.Tenant(name=name, limits=tenant_pb2.TenantLimits(**limits))
    request = tenant_pb2.SetTenantRequest(tenant=tenant)
    await tenants(plane).SetTenant(request, metadata=AUTHORIZATION)


async def show(plane: ControlPlane, name: str) -> tenant_pb2.GetTenantResponse:
    request = tenant_pb2.GetTenantRequest(name=name)
    return await tenants(plane).GetTenant(request, metadata=AUTHORIZATION)


async def admit(plane: ControlPlane, tenant: str = "acme", **fields: Any) -> pb.AdmitResponse:
    return await plane.admission.Admit(pb.AdmitRequest(tenant=tenant, **fields))


async def refusal(plane: ControlPlane, tenant: str = "acme", **fields: Any) -> ChoraleError:
    """Of a request that is over its tenant's limits."""
    error = await failure(admit(plane, tenant, **fields))
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "TENANT_QUOTA"), error
    assert ("try again later" in error.message) == (error.retry_after_s is not None)
    return error
