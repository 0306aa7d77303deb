"""TenantService: limits are set, told and removed by those who have the fleet token."""

from __future__ import annotations

import pytest

from chorale import AsyncClient
from chorale.errors import InvalidArgumentError, NotFoundError, UnauthenticatedError
from controlplane.errors import TooManyTenantsError
from controlplane.store.client import Store
from controlplane.tenants.limits import TenantLimits
from controlplane.tenants.tenants import Tenants
from tests.controlplane.tenants.quota import admit
from tests.helpers.control_plane import TOKEN, ControlPlane


async def test_set_get_list_remove(plane: ControlPlane) -> None:
    async with AsyncClient(plane.address) as client:
        tenants = client.tenants(TOKEN)
        assert await tenants.list() == []
        seen = await tenants.get("acme")
        assert (seen.tenant.name, seen.is_default) == ("acme", False)
        assert not seen.tenant.limits.ListFields() and not seen.HasField("available_requests")
        limits = {
            "requests_per_minute": 60,
            "request_burst": 5,
            "tokens_per_minute": 0,
            "max_priority": 0,
        }
        made = await tenants.set("zeta", **limits)
        assert {f.name: v for f, v in made.limits.ListFields()} == limits
        await tenants.set("*", tokens_per_minute=1, token_burst=7, max_priority=-2)
        assert [each.name for each in await tenants.list()] == ["*", "zeta"]
        assert (await tenants.list())[1] == made
        seen = await tenants.get("zeta")
        assert (seen.tenant, seen.is_default, seen.available_requests) == (made, False, 5)
        seen = await tenants.get("acme")
        assert (seen.is_default, seen.tenant.limits.token_burst) == (True, 7)
        assert seen.available_tokens == 7 and not seen.HasField("available_requests")
        await plane.join(max_running=4)
        await admit(plane, "acme", max_tokens=3, prompt_size={"num_tokens": 1})
        assert 3 <= (await tenants.get("acme")).available_tokens < 4
        await tenants.set("zeta", max_priority=1)  # in place of all that was
        assert [f.name for f, _ in (await tenants.get("zeta")).tenant.limits.ListFields()] == [
            "max_priority"
        ]
        await tenants.remove("zeta")
        assert (await tenants.get("zeta")).is_default
        with pytest.raises(NotFoundError) as caught:
            await tenants.remove("zeta")
        assert caught.value.reason == "TENANT_NOT_FOUND"


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"requests_per_minute": 1_000_000_001}, "limits.requests_per_minute"),
        ({"requests_per_minute": 5, "request_burst": 0}, "limits.request_burst"),
        ({"request_burst": 5}, "limits.request_burst"),
        ({"tokens_per_minute": 0, "token_burst": 5}, "limits.token_burst"),
        ({"max_priority": 11}, "limits.max_priority"),
        ({"max_priority": -11}, "limits.max_priority"),
    ],
)
async def test_limits_that_cannot_hold(
    plane: ControlPlane, limits: dict[str, int], field: str
) -> None:
    async with AsyncClient(plane.address) as client:
        with pytest.raises(InvalidArgumentError) as caught:
            await client.tenants(TOKEN).set("acme", **limits)
        assert caught.value.reason == "TENANT_LIMIT_INVALID"
        assert caught.value.metadata["field"] == field
        assert await client.tenants(TOKEN).list() == []


async def test_names_and_the_token(plane: ControlPlane) -> None:
    async with AsyncClient(plane.address) as client:
        for name in ("", "a b", "é", "x" * 129):
            for call in (client.tenants(TOKEN).set, client.tenants(TOKEN).get):
                with pytest.raises(InvalidArgumentError) as caught:
                    await call(name)
                assert caught.value.reason == "TENANT_INVALID"
        for token in ("", "wrong"):
            tenants = client.tenants(token)
            for call in (tenants.list(), tenants.get("a"), tenants.set("a"), tenants.remove("a")):
                with pytest.raises(UnauthenticatedError):
                    await call


async def test_their_number_is_bounded(redis_url: str) -> None:
    store = Store(redis_url)
    try:
        tenants = Tenants(store, max_tenants=2)
        for name in ("a", "b", "a"):
            await tenants.set(name, TenantLimits(requests_per_minute=1))
        with pytest.raises(TooManyTenantsError):
            await tenants.set("c", TenantLimits())
        await tenants.remove("a")
        await tenants.set("c", TenantLimits())
    finally:
        await store.close()
