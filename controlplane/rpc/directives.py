"""Between the messages about directives and the domain's values."""

from __future__ import annotations

from google.protobuf import duration_pb2

from chorale.v1 import fleet_pb2 as pb
from controlplane.errors import InvalidRequestError
from controlplane.fleet.directives import Action, Numbered, Tier

_DEFAULT_WITHIN_S = 30.0
_ACTIONS: dict[pb.AdapterAction, Action] = {
    pb.ADAPTER_ACTION_PREFETCH: "prefetch",
    pb.ADAPTER_ACTION_PIN: "pin",
    pb.ADAPTER_ACTION_UNPIN: "unpin",
    pb.ADAPTER_ACTION_UNLOAD: "unload",
}
_TIERS: dict[pb.AdapterTier, Tier] = {
    pb.ADAPTER_TIER_UNSPECIFIED: "host",
    pb.ADAPTER_TIER_HOST: "host",
    pb.ADAPTER_TIER_POOL: "pool",
}
_ACTIONS_TO_PB = {action: number for number, action in _ACTIONS.items()}
_TIERS_TO_PB: dict[Tier, pb.AdapterTier] = {
    "host": pb.ADAPTER_TIER_HOST,
    "pool": pb.ADAPTER_TIER_POOL,
}


def action_from_pb(action: pb.AdapterAction) -> Action:
    """Raises: InvalidRequestError (ACTION_INVALID)."""
    if action not in _ACTIONS:
        raise _invalid("ACTION_INVALID", "action", "must be PREFETCH, PIN, UNPIN or UNLOAD", action)
    return _ACTIONS[action]


def tier_from_pb(tier: pb.AdapterTier) -> Tier:
    """Raises: InvalidRequestError (TIER_INVALID)."""
    if tier not in _TIERS:
        raise _invalid("TIER_INVALID", "tier", "must be HOST or POOL", tier)
    return _TIERS[tier]


def within_from_pb(request: pb.DirectAdapterRequest) -> float:
    """Seconds; 0 where the action takes no time."""
    if request.action != pb.ADAPTER_ACTION_UNLOAD:
        return 0.0
    return request.within.ToNanoseconds() / 1e9 if request.HasField("within") else _DEFAULT_WITHIN_S


def directive_to_pb(numbered: Numbered) -> pb.Directive:
    directive = numbered.directive
    within = duration_pb2.Duration()
    within.FromMilliseconds(int(directive.within_s * 1000))
    return pb.Directive(
        sequence=numbered.sequence,
        action=_ACTIONS_TO_PB[directive.action],
        digest=directive.digest,
        source=directive.source,
        name=directive.name,
        tier=_TIERS_TO_PB[directive.tier],
        within=within,
    )


def _invalid(reason: str, field: str, problem: str, value: int) -> InvalidRequestError:
    return InvalidRequestError(reason, f"{field} {problem}, not {value}", metadata={"field": field})
