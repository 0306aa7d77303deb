"""What a benchmark can fail with.

    BenchError                 a reason, a message and the facts; nothing was measured
    ├── WorkloadError          WORKLOAD_INVALID: parameters that describe no workload
    ├── TargetError            the endpoint cannot be benchmarked
    ├── PlotError              PLOT_UNAVAILABLE: matplotlib is not there
    └── PeerError              the peer to compare with is not there, or does not come up

A request that fails is no error of the benchmark: it is counted by reason (RequestFailed is how
targets tell the driver).
"""

from __future__ import annotations

from collections.abc import Mapping


class BenchError(Exception):
    """reason: UPPER_SNAKE, stable. message: names the field, the value and the way out."""

    def __init__(
        self, reason: str, message: str, *, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})


class WorkloadError(BenchError):
    def __init__(self, field: str, value: object, needed: str) -> None:
        shown = repr(value)[:200]
        super().__init__(
            "WORKLOAD_INVALID",
            f"{field} {shown}: {needed}",
            metadata={"field": field, "value": shown},
        )


class TargetError(BenchError):
    pass


class PlotError(BenchError):
    pass


class PeerError(BenchError):
    pass


class RequestFailed(Exception):
    """One request of a run has ended with an error; `reason` is what it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message[:200]
