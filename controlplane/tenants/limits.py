"""What a tenant may ask for, as it stands in Redis."""

from __future__ import annotations

import msgspec

from controlplane.errors import InvalidRequestError
from controlplane.options import MAX_PRIORITY

MAX_PER_MINUTE = 1_000_000_000
MAX_RUNNING = 1_000_000


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """See TenantLimits in tenant.proto. None: no such limit."""

    requests_per_minute: int | None = None
    request_burst: int | None = None
    tokens_per_minute: int | None = None
    token_burst: int | None = None
    max_priority: int | None = None
    max_running: int | None = None

    def pack(self) -> str:
        return msgspec.json.encode(self).decode()

    @staticmethod
    def unpack(text: str) -> TenantLimits:
        return _decoder.decode(text) if text else TenantLimits()


_decoder = msgspec.json.Decoder(TenantLimits)


def check_limits(limits: TenantLimits) -> TenantLimits:
    """`limits`, when they can hold. Raises: InvalidRequestError (TENANT_LIMIT_INVALID)."""
    for rate_name, burst_name in (
        ("requests_per_minute", "request_burst"),
        ("tokens_per_minute", "token_burst"),
    ):
        rate, burst = getattr(limits, rate_name), getattr(limits, burst_name)
        if rate is not None and not 0 <= rate <= MAX_PER_MINUTE:
            raise _invalid(rate_name, rate, f"must be 0 to {MAX_PER_MINUTE}")
        if burst is not None and not 1 <= burst <= MAX_PER_MINUTE:
            raise _invalid(burst_name, burst, f"must be 1 to {MAX_PER_MINUTE}")
        if burst is not None and not rate:
            raise _invalid(burst_name, burst, f"needs a {rate_name} above 0")
    running = limits.max_running
    if running is not None and not 0 <= running <= MAX_RUNNING:
        raise _invalid("max_running", running, f"must be 0 to {MAX_RUNNING}")
    if limits.max_priority is not None and abs(limits.max_priority) > MAX_PRIORITY:
        raise _invalid("max_priority", limits.max_priority, "must be -10 to 10")
    return limits


def _invalid(field: str, value: int, problem: str) -> InvalidRequestError:
    return InvalidRequestError(
        "TENANT_LIMIT_INVALID",
        f"limits.{field} is {value}; it {problem}",
        metadata={"field": f"limits.{field}", "value": str(value)},
    )
