"""What an alias may be, before Redis is asked whether its targets are there."""

from __future__ import annotations

from controlplane.errors import InvalidRequestError
from controlplane.registry.model import Alias, AliasTarget
from controlplane.registry.names import check_name

MAX_TARGETS = 16
MAX_WEIGHT = 1_000_000


def check_alias(alias: Alias) -> None:
    """Raises: InvalidRequestError (NAME_INVALID, ALIAS_TARGETS_INVALID, ALIAS_WEIGHT_INVALID)."""
    check_name("alias.name", alias.name)
    targets = alias.targets
    if len(targets) == 1:
        check_name("alias.adapter", targets[0].adapter)
    elif len(targets) > MAX_TARGETS:
        raise _invalid("alias.targets", f"at most {MAX_TARGETS} go, not {len(targets)}")
    seen: set[tuple[str, int]] = set()
    for index, target in enumerate(targets):
        check_name(f"alias.targets[{index}].adapter", target.adapter)
        if not 0 <= target.weight <= MAX_WEIGHT:
            raise InvalidRequestError(
                "ALIAS_WEIGHT_INVALID",
                f"alias.targets[{index}].weight must be 0 to {MAX_WEIGHT:,}, not {target.weight}",
                metadata={"field": f"alias.targets[{index}].weight"},
            )
        if (target.adapter, target.version) in seen:
            raise _invalid(f"alias.targets[{index}]", f"{shown(target)} is there twice")
        seen.add((target.adapter, target.version))
    if not any(target.weight for target in targets):
        raise _invalid("alias.targets", "all weights are 0: one target must have more")


def shown(target: AliasTarget) -> str:
    """As references are written."""
    return f"{target.adapter}@{target.version}" if target.version else target.adapter


def _invalid(field: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(
        "ALIAS_TARGETS_INVALID", f"{field}: {problem}", metadata={"field": field}
    )
