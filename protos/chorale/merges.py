"""A request to merge adapters, from a call's arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from chorale.errors import InvalidArgumentError
from chorale.v1 import adapter_registry_pb2 as pb


class MergeOptions(TypedDict, total=False):
    """strategy: cat (the default), linear, ties, magnitude_prune, dare_linear or dare_ties.
    density: share of values that the last four keep. majority_sign: "total" or "frequency", of ties
    and dare_ties. seed: of what dare_* draws. labels, must_be_new, keep_current: as in `register`.
    """

    strategy: str
    density: float | None
    majority_sign: str
    seed: int | None
    labels: Mapping[str, str] | None
    must_be_new: bool
    keep_current: bool


def merge_request(
    name: str, components: Mapping[str, float], options: MergeOptions
) -> pb.MergeAdaptersRequest:
    """Raises: TypeError for an unknown option, InvalidArgumentError when a value does not fit."""
    unknown = sorted(set(options) - set(MergeOptions.__annotations__))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}")
    strategy, sign = options.get("strategy", ""), options.get("majority_sign", "")
    try:
        return pb.MergeAdaptersRequest(
            name=name,
            components=[
                pb.MergeComponent(adapter=adapter, weight=weight)
                for adapter, weight in components.items()
            ],
            strategy=_enum("strategy", pb.MergeStrategy.keys(), "MERGE_STRATEGY", strategy),
            density=options.get("density"),
            majority_sign=_enum("majority_sign", pb.MajoritySign.keys(), "MAJORITY_SIGN", sign),
            seed=options.get("seed"),
            labels=options.get("labels") or {},
            must_be_new=options.get("must_be_new", False),
            keep_current=options.get("keep_current", False),
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
