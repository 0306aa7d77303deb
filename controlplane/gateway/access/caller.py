"""Whose call the running code is, where the gateway asks for keys."""

from __future__ import annotations

from contextvars import ContextVar

from chorale.errors import PermissionDeniedError
from controlplane.gateway.access.keys import ANY_TENANT, ApiKey

_caller: ContextVar[ApiKey | None] = ContextVar("caller", default=None)


def set_caller(key: ApiKey) -> None:
    """For the rest of this call: gRPC and HTTP run each in a context of its own."""
    _caller.set(key)


def has_shown_key() -> bool:
    """Whether the call was let in by a key."""
    return _caller.get() is not None


def tenant_for(asked: str) -> str:
    """The tenant that the call counts for when it asks for `asked`; empty is none in particular.

    Raises: PermissionDeniedError (TENANT_NOT_YOURS).
    """
    key = _caller.get()
    if key is None or key.tenant == ANY_TENANT:
        return asked
    if asked in ("", key.tenant):
        return key.tenant
    raise PermissionDeniedError(
        "TENANT_NOT_YOURS",
        f"tenant is {asked[:128]!r} and the API key is {key.tenant!r}'s: leave the tenant out, or "
        "use a key of that tenant",
        metadata={"field": "tenant", "tenant": key.tenant},
    )
