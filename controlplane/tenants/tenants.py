"""The limits of tenants, in Redis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.errors import TooManyTenantsError, UnknownNameError
from controlplane.store.client import Store, as_dict
from controlplane.tenants.limits import TenantLimits, check_limits
from controlplane.tenants.names import check_tenant

MAX_TENANTS = 10_000


@dataclass(frozen=True, slots=True)
class TenantView:
    """is_default: whether the limits are those of "*". available_…: what may be asked for at once
    now; None where there is no such limit. num_running: generations that count for max_running."""

    limits: TenantLimits
    is_default: bool
    available_requests: float | None
    available_tokens: float | None
    num_running: int | None


class Tenants:
    """Sets and tells them; `Admission` holds requests to them. Methods raise InvalidRequestError
    and StoreUnavailableError."""

    def __init__(self, store: Store, max_tenants: int = MAX_TENANTS) -> None:
        self._store = store
        self._max_tenants = max_tenants

    async def set(self, name: str, limits: TenantLimits) -> None:
        """Raises: TooManyTenantsError."""
        check_tenant("tenant.name", name)
        text = check_limits(limits).pack()
        if (await self._store.run("set_tenant", name, text, self._max_tenants))[0] != "OK":
            raise TooManyTenantsError(self._max_tenants)

    async def get(self, name: str) -> TenantView:
        """What holds for `name`, whether or not it has limits of its own."""
        check_tenant("name", name)
        text, is_default, requests, tokens, running = await self._store.run("tenant", name)
        limits = TenantLimits.unpack(text)
        return TenantView(
            limits,
            is_default == "1",
            _available(limits.requests_per_minute, limits.request_burst, float(requests)),
            _available(limits.tokens_per_minute, limits.token_burst, float(tokens)),
            None if limits.max_running is None else int(running),
        )

    async def all(self) -> Mapping[str, TenantLimits]:
        """All that have limits, in order of name."""
        found = as_dict(await self._store.run("tenants"))
        return {name: TenantLimits.unpack(found[name]) for name in sorted(found)}

    async def remove(self, name: str) -> None:
        """Raises: UnknownNameError (TENANT_NOT_FOUND)."""
        check_tenant("name", name)
        if not await self._store.run("remove_tenant", name):
            raise UnknownNameError(
                "TENANT_NOT_FOUND",
                f"tenant {name!r} has no limits of its own: ListTenants tells those that have",
                metadata={"tenant": name},
            )


def _available(per_minute: int | None, burst: int | None, owed: float) -> float | None:
    if per_minute is None:
        return None
    return (burst or per_minute) - owed
