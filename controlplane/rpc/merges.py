"""Merges, between messages and recipes."""

from __future__ import annotations

from chorale.v1 import adapter_registry_pb2 as pb
from controlplane.registry.merging import WantedMerge
from storage.errors import MergeRefusedError
from storage.merge.recipe import SIGNS, STRATEGIES, is_merge, parse_recipe, refused

_STRATEGIES = {0: ""} | {
    pb.MergeStrategy.Value(f"MERGE_STRATEGY_{name.upper()}"): name for name in STRATEGIES
}
_SIGNS = {0: ""} | {pb.MajoritySign.Value(f"MAJORITY_SIGN_{name.upper()}"): name for name in SIGNS}


def merge_from_pb(request: pb.MergeAdaptersRequest) -> WantedMerge:
    """Raises: MergeRefusedError for numbers that stand for nothing."""
    if request.strategy not in _STRATEGIES:
        raise refused("strategy", f"has no number {request.strategy}")
    if request.majority_sign not in _SIGNS:
        raise refused("majority_sign", f"has no number {request.majority_sign}")
    return WantedMerge(
        components=[(each.adapter, each.weight) for each in request.components],
        strategy=_STRATEGIES[request.strategy],
        density=request.density if request.HasField("density") else None,
        majority_sign=_SIGNS[request.majority_sign],
        seed=request.seed if request.HasField("seed") else None,
    )


def merge_to_pb(source: str) -> pb.Merge | None:
    """Of a version's source; None where it is no merge, or one of a newer control plane's."""
    if not is_merge(source):
        return None
    try:
        recipe = parse_recipe(source)
    except MergeRefusedError:
        return None
    return pb.Merge(
        strategy=f"MERGE_STRATEGY_{recipe.strategy.upper()}",
        components=[
            pb.MergedComponent(
                adapter=each.name, weight=each.weight, digest=each.digest, source=each.source
            )
            for each in recipe.components
        ],
        density=recipe.density,
        majority_sign=f"MAJORITY_SIGN_{(recipe.majority_sign or 'unspecified').upper()}",
        seed=recipe.seed,
    )
