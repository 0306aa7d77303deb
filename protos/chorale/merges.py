"""A request to merge adapters, from a call's arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chorale.errors import InvalidArgumentError
from chorale.v1 import adapter_registry_pb2 as pb


def merge_request(
    name: str,
    components: Mapping[str, float],
    *,
    strategy: str,
    density: float | None,
    majority_sign: str,
    seed: int | None,
    labels: Mapping[str, str] | None,
    must_be_new: bool,
    keep_current: bool,
) -> pb.MergeAdaptersRequest:
    """Raises: InvalidArgumentError for what no message can say; all else is for the server."""
    try:
        return pb.MergeAdaptersRequest(
            name=name,
            components=[
                pb.MergeComponent(adapter=adapter, weight=weight)
                for adapter, weight in components.items()
            ],
            strategy=_enum("strategy", pb.MergeStrategy.keys(), "MERGE_STRATEGY", strategy),
            density=density,
            majority_sign=_enum(
                "majority_sign", pb.MajoritySign.keys(), "MAJORITY_SIGN", majority_sign
            ),
            seed=seed,
            labels=labels or {},
            must_be_new=must_be_new,
            keep_current=keep_current,
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            "ARGUMENT_INVALID", f"an argument is invalid: {error}"
        ) from error


def _enum(field: str, names: Sequence[str], prefix: str, value: str) -> str:
    """Raises: ValueError naming the field and what it takes."""
    name = f"{prefix}_{value or 'unspecified'}".upper()
    if name not in names:
        known = ", ".join(each.removeprefix(f"{prefix}_").lower() for each in names[1:])
        raise ValueError(f"{field} must be one of {known}, not {value[:80]!r}")
    return name
