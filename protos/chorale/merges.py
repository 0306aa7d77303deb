"""A request to merge adapters, from a call's arguments."""

from __future__ import annotations

from collections.abc import Mapping

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
            strategy=_number("strategy", pb.MergeStrategy, "MERGE_STRATEGY", strategy),
            density=density,
            majority_sign=_number("majority_sign", pb.MajoritySign, "MAJORITY_SIGN", majority_sign),
            seed=seed,
            labels=labels or {},
            must_be_new=must_be_new,
            keep_current=keep_current,
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            "ARGUMENT_INVALID", f"an argument is invalid: {error}"
        ) from error


def word(kind: str, prefix: str) -> str:
    """As `Adapters.merge` takes it: "ties" for MERGE_STRATEGY_TIES."""
    return kind.removeprefix(f"{prefix}_").lower()


def _number(field: str, kinds: object, prefix: str, value: str) -> int:
    """0 for "". Raises: ValueError naming the field and what it takes."""
    known = [word(key, prefix) for key in kinds.keys()[1:]]  # type: ignore[attr-defined]
    if not value:
        return 0
    if value not in known:
        raise ValueError(f"{field} must be one of {', '.join(known)}, not {str(value)[:80]!r}")
    return known.index(value) + 1
