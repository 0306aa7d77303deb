"""Merges: adapters made of others. To the registry one is an adapter whose source is a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.errors import ConflictError
from controlplane.registry import refusals
from controlplane.registry.model import Registration
from controlplane.registry.names import check_name
from controlplane.registry.registry import AdapterRegistry
from storage.merge.recipe import MAX_COMPONENTS, Component, is_merge, make_recipe, refused


@dataclass(frozen=True, slots=True)
class WantedMerge:
    """components: what they are called (a name, NAME@VERSION or alias), and their weights. The
    others as storage.merge.recipe has them, "" and None where left out."""

    components: Sequence[tuple[str, float]]
    strategy: str = ""
    density: float | None = None
    majority_sign: str = ""
    seed: int | None = None


async def register_merge(
    registry: AdapterRegistry,
    name: str,
    wanted: WantedMerge,
    *,
    labels: Mapping[str, str],
    must_be_new: bool = False,
    keep_current: bool = False,
) -> Registration:
    """Pins the components as they are now, and registers what they make under `name`.

    Raises: what AdapterRegistry.register does; UnknownNameError, MergeRefusedError, ConflictError
    (ALIAS_AMBIGUOUS, MERGE_BASE_MIXED, MERGE_COMPONENT_PRIVATE, MERGE_COMPONENT_UNKNOWN).
    """
    check_name("name", name)
    if not 1 <= len(wanted.components) <= MAX_COMPONENTS:
        raise refused("components", f"must be 1 to {MAX_COMPONENTS}, not {len(wanted.components)}")
    components: list[Component] = []
    bases: dict[str, str] = {}
    for reference, weight in wanted.components:
        adapter, number = await registry.get_one(reference)
        version = adapter.version(number)
        shown = f"{adapter.name}@{number}"
        if version.private:
            raise refusals.component_private(shown)
        if is_merge(version.source):
            raise refused(
                "components",
                f"cannot have a merge among them, as {shown}: name what that one is made of",
                component=shown,
            )
        components.append(Component(shown, weight, version.record.digest, version.source))
        bases.setdefault(version.record.base_model, shown)
    if len(bases) > 1:
        raise _bases_mixed(bases)
    recipe = make_recipe(
        wanted.strategy,
        components,
        density=wanted.density,
        majority_sign=wanted.majority_sign,
        seed=wanted.seed,
    )
    return await registry.register(
        name,
        recipe.uri,
        base_model=next(iter(bases)),
        labels=labels,
        must_be_new=must_be_new,
        keep_current=keep_current,
    )


def _bases_mixed(bases: Mapping[str, str]) -> ConflictError:
    (base, component), (other, another) = list(bases.items())[:2]
    return ConflictError(
        "MERGE_BASE_MIXED",
        f"components: {component} is bound to base model {base!r} and {another} to {other!r}: the "
        "components of a merge must share one",
        metadata={"component": another, "base_model": other},
    )
