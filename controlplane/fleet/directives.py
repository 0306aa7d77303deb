"""What data planes are told to do about adapters: kept in Redis until they have received it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from controlplane.errors import ConflictError, FleetFullError, InvalidRequestError, UnknownNameError
from controlplane.fleet.checks import check_identity
from controlplane.registry.registry import AdapterRegistry
from controlplane.store.client import Store

Action = Literal["prefetch", "pin", "unpin", "unload"]
Tier = Literal["host", "pool"]

MAX_WITHIN_S = 3600.0
_MAX_WAITING = 1000  # directives that a data plane did not fetch yet
_RETRY_AFTER_S = 5.0


class Directive(msgspec.Struct, frozen=True, kw_only=True):
    """See Directive in fleet.proto. base_model: whose data planes are told."""

    action: Action
    digest: str
    source: str
    name: str
    base_model: str
    tier: Tier
    within_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Numbered:
    sequence: int
    directive: Directive


_decoder = msgspec.json.Decoder(Directive)


def decode_numbered(texts: Sequence[str]) -> list[Numbered]:
    """From "number directive" as the scripts have them."""
    pairs = [text.partition(" ") for text in texts]
    return [Numbered(int(number), _decoder.decode(json)) for number, _, json in pairs]


class Directives:
    def __init__(self, store: Store, registry: AdapterRegistry) -> None:
        self._store = store
        self._registry = registry

    async def send(
        self, reference: str, action: Action, tier: Tier, within_s: float, data_plane_id: str
    ) -> tuple[str, list[str]]:
        """Tells the data planes of the adapter's base model, or one of them. Returns `name@version`
        and the ids of those who are told.

        Raises: InvalidRequestError (WITHIN_INVALID, PIN_IS_FOR_ALL), UnknownNameError,
        ConflictError (PREFETCH_NEEDS_TOKEN, ALIAS_AMBIGUOUS), FleetFullError (TOO_MANY_DIRECTIVES),
        StoreUnavailableError.
        """
        _check(action, within_s, data_plane_id)
        adapter, number = await self._registry.get_one(reference)
        version = adapter.version(number)
        directive = Directive(
            action=action,
            digest=version.record.digest,
            source=version.source,
            name=f"{adapter.name}@{number}",
            base_model=version.record.base_model,
            tier=tier,
            within_s=within_s,
        )
        reply = await self._store.run(
            "direct",
            directive.digest,
            directive.base_model,
            data_plane_id,
            msgspec.json.encode(directive).decode(),
            {"pin": "set", "prefetch": ""}.get(action, "clear"),
            _MAX_WAITING,
            int(version.private and action in ("prefetch", "pin")),
        )
        if reply[0] != "OK":
            raise _refusal(reply, directive, data_plane_id)
        return directive.name, sorted(reply[1])


def _check(action: Action, within_s: float, data_plane_id: str) -> None:
    """Raises: InvalidRequestError."""
    if not 0 <= within_s <= MAX_WITHIN_S:
        raise InvalidRequestError(
            "WITHIN_INVALID",
            f"within must be 0 to {MAX_WITHIN_S:g} seconds, not {within_s:g}",
            metadata={"field": "within"},
        )
    if data_plane_id:
        check_identity(data_plane_id, incarnation=1)
        if action in ("pin", "unpin"):
            raise InvalidRequestError(
                "PIN_IS_FOR_ALL",
                "data_plane_id must be empty: an adapter is pinned on all data planes of its"
                " base model, those that join later included",
                metadata={"field": "data_plane_id"},
            )


def _refusal(
    reply: Sequence[str], directive: Directive, data_plane_id: str
) -> UnknownNameError | ConflictError | FleetFullError:
    """reply: of the script, {why not, detail}."""
    if reply[0] == "UNKNOWN":
        return UnknownNameError(
            "DATA_PLANE_NOT_FOUND",
            f"data_plane_id {data_plane_id!r}: no live data plane of {directive.base_model!r}"
            " has this id",
            metadata={"data_plane_id": data_plane_id},
        )
    if reply[0] == "ABSENT":
        return ConflictError(
            "PREFETCH_NEEDS_TOKEN",
            f"adapter {directive.name!r} is private and data plane {reply[1]!r} does not have "
            "it: a directive carries nobody's token, so the data plane could not fetch it. "
            "Send a request for it there with a token first, or name a data plane that has it",
            metadata={"adapter": directive.name, "data_plane_id": reply[1]},
        )
    return FleetFullError(
        "TOO_MANY_DIRECTIVES",
        f"data plane {reply[1]!r} did not fetch {_MAX_WAITING} directives yet; try again",
        metadata={"data_plane_id": reply[1]},
        retry_after_s=_RETRY_AFTER_S,
    )
