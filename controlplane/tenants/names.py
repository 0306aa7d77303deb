"""What tenants' names look like."""

from __future__ import annotations

import re

from controlplane.errors import InvalidRequestError

DEFAULT_TENANT = "default"
MAX_TENANT_CHARS = 128
_TENANT = re.compile(r"[!-~]+", re.ASCII)


def is_tenant(value: str) -> bool:
    return len(value) <= MAX_TENANT_CHARS and _TENANT.fullmatch(value) is not None


def check_tenant(field: str, value: str) -> str:
    """`value`, when it can name a tenant. Raises: InvalidRequestError (TENANT_INVALID)."""
    if is_tenant(value):
        return value
    raise InvalidRequestError(
        "TENANT_INVALID",
        f"{field} must be 1 to {MAX_TENANT_CHARS} printable ASCII characters without spaces, "
        f"not {value[:200]!r}",
        metadata={"field": field},
    )
