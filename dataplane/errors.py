"""Errors of the data plane.

DataPlaneError
├── ModelError            the base model cannot be served
│   ├── ModelNotFoundError
│   ├── UnsupportedModelError
│   └── CheckpointError
├── PoolTooSmallError     the pool cannot hold what must fit in it at once
├── AdapterRefusedError   an adapter cannot be applied exactly as trained to this base model
├── AdapterUnloadedError  an operator unloads the adapter, and the time to finish is over
├── ConstraintError       what an answer must be cannot be compiled or followed
├── ConstraintsUnsupportedError  the tokenizer does not allow any constraint
├── NonFiniteOutputError  a sequence's logits are NaN or infinite
├── QueueFullError        no more requests can wait
├── HopelessError         a waiting request can no longer meet its objective
└── DeadlineError         a request's time was over before it finished
"""

from __future__ import annotations

from collections.abc import Mapping


class DataPlaneError(Exception):
    """reason: UPPER_SNAKE, stable. message: for people, with the way out. metadata: the facts."""

    retry_after_s: float | None = None

    def __init__(
        self, reason: str, message: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})


class ModelError(DataPlaneError):
    pass


class ModelNotFoundError(ModelError):
    pass


class UnsupportedModelError(ModelError):
    pass


class CheckpointError(ModelError):
    pass


class PoolTooSmallError(DataPlaneError):
    pass


class AdapterRefusedError(DataPlaneError):
    pass


class ConstraintError(DataPlaneError):
    pass


class ConstraintsUnsupportedError(DataPlaneError):
    pass


class AdapterUnloadedError(DataPlaneError):
    """Another data plane, or this one a little later, serves the adapter still."""

    retry_after_s = 1.0

    def __init__(self, digest: str) -> None:
        super().__init__(
            "ADAPTER_UNLOADED",
            "the adapter is being unloaded from this data plane and the time that its running"
            " requests were given is over; try again",
            {"digest": digest},
        )


class NonFiniteOutputError(DataPlaneError):
    pass


class QueueFullError(DataPlaneError):
    retry_after_s = 1.0


class HopelessError(DataPlaneError):
    """It is computed no further; it may be tried again, elsewhere at once."""

    def __init__(self, message: str, metadata: Mapping[str, str], retry_after_s: float) -> None:
        super().__init__("DEADLINE_HOPELESS", message, metadata)
        self.retry_after_s = retry_after_s


class DeadlineError(DataPlaneError):
    pass
