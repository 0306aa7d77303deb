"""What tenants may ask for: the part of both clients that sets and tells it."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

from chorale.calls import async_call, call
from chorale.errors import InvalidArgumentError
from chorale.v1 import tenant_pb2 as pb

Metadata = tuple[tuple[str, str], ...]


class Limits(TypedDict, total=False):
    """As chorale.v1.TenantLimits; what is left out or None is not limited."""

    requests_per_minute: int | None
    request_burst: int | None
    tokens_per_minute: int | None
    token_burst: int | None
    max_priority: int | None
    max_running: int | None


def _set_request(name: str, limits: Limits) -> pb.SetTenantRequest:
    """Raises: TypeError for an unknown limit, InvalidArgumentError when one does not fit."""
    unknown = sorted(set(limits) - set(Limits.__annotations__))
    if unknown:
        raise TypeError(f"unknown limit {unknown[0]!r}")
    try:
        return pb.SetTenantRequest(tenant=pb.Tenant(name=name, limits=pb.TenantLimits(**limits)))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            "ARGUMENT_INVALID", f"an argument is invalid: {error}"
        ) from error


class Tenants:
    """`client.tenants(fleet_token)`. Methods raise the errors of `chorale.errors`."""

    def __init__(self, stub: Any, timeout: float | None, metadata: Metadata) -> None:
        self._stub = stub
        self._rest = timeout, metadata

    def set(self, name: str, **limits: Unpack[Limits]) -> pb.Tenant:
        """Replaces all limits of tenant `name`; "*": of those that have none of their own."""
        return call(self._stub.SetTenant, _set_request(name, limits), *self._rest).tenant

    def get(self, name: str) -> pb.GetTenantResponse:
        """The limits that hold for it, and what it may ask for now."""
        return call(self._stub.GetTenant, pb.GetTenantRequest(name=name), *self._rest)

    def list(self) -> list[pb.Tenant]:
        """All that have limits, in order of name."""
        return [*call(self._stub.ListTenants, pb.ListTenantsRequest(), *self._rest).tenants]

    def remove(self, name: str) -> None:
        """Removes its own limits."""
        call(self._stub.RemoveTenant, pb.RemoveTenantRequest(name=name), *self._rest)


class AsyncTenants:
    """As Tenants, to be awaited."""

    def __init__(self, stub: Any, timeout: float | None, metadata: Metadata) -> None:
        self._stub = stub
        self._rest = timeout, metadata

    async def set(self, name: str, **limits: Unpack[Limits]) -> pb.Tenant:
        """See Tenants.set."""
        request = _set_request(name, limits)
        return (await async_call(self._stub.SetTenant, request, *self._rest)).tenant

    async def get(self, name: str) -> pb.GetTenantResponse:
        """See Tenants.get."""
        return await async_call(self._stub.GetTenant, pb.GetTenantRequest(name=name), *self._rest)

    async def list(self) -> list[pb.Tenant]:
        """See Tenants.list."""
        request = pb.ListTenantsRequest()
        return [*(await async_call(self._stub.ListTenants, request, *self._rest)).tenants]

    async def remove(self, name: str) -> None:
        """See Tenants.remove."""
        await async_call(self._stub.RemoveTenant, pb.RemoveTenantRequest(name=name), *self._rest)
