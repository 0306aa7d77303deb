"""Leases of data planes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.errors import (
    ConflictError,
    ControlPlaneError,
    FleetFullError,
    UnknownNameError,
)
from controlplane.fleet.checks import (
    check_base_model,
    check_digests,
    check_endpoint,
    check_identity,
    check_num_digests,
)
from controlplane.fleet.counters import Counters
from controlplane.fleet.directives import Numbered, decode_numbered
from controlplane.fleet.model import TIERS, DataPlane, Load, Residency
from controlplane.fleet.outlook import Outlook
from controlplane.fleet.ticket_keys import TicketKeys, decode_keys
from controlplane.registry.model import BaseModelRecord, encode
from controlplane.store.client import Store, as_dict
from controlplane.tenants.settlement import Settlement

MAX_DATA_PLANES = 1024
"""Live at once: each admission reads all of them."""
MAX_LISTED_DIGESTS = 200_000
"""In one answer, which gRPC would not let through with more."""
_JOIN_AGAIN_S = 5.0
_NO_COUNTERS = Counters()
_NO_OUTLOOK = Outlook()
_NO_SETTLEMENT = Settlement()


class Fleet:
    """Membership. A lease is a key that expires in Redis, `lease_s` after the last heartbeat.

    Raises everywhere, besides what methods name: InvalidRequestError, StoreUnavailableError.
    """

    def __init__(self, store: Store, ticket_keys: TicketKeys, *, lease_s: float) -> None:
        self._store = store
        self._ticket_keys = ticket_keys
        self._lease_ms = int(lease_s * 1000)

    async def join(
        self, data_plane_id: str, incarnation: int, endpoint: str, base: BaseModelRecord
    ) -> tuple[Mapping[str, bytes], int]:
        """Grants a lease and returns the ticket keys, and Redis' time in milliseconds.

        Raises: ConflictError (FINGERPRINT_CONFLICT, STALE_INCARNATION, BASE_MODEL_NAME_TAKEN);
        FleetFullError (TOO_MANY_DATA_PLANES).
        """
        check_identity(data_plane_id, incarnation)
        check_endpoint(endpoint)
        check_base_model(base)
        keys = await self._ticket_keys.all()
        reply = await self._store.run(
            "join",
            data_plane_id,
            _sortable(incarnation),
            endpoint,
            base.name,
            base.fingerprint,
            encode(base),
            self._lease_ms,
            MAX_DATA_PLANES,
        )
        if reply[0] != "OK":
            raise _join_refusal(reply, data_plane_id, base)
        return keys, int(reply[1])

    async def heartbeat(
        self,
        data_plane_id: str,
        incarnation: int,
        load: Load,
        residency: Residency,
        received_directives: int = 0,
        counters: Counters = _NO_COUNTERS,
        outlook: Outlook = _NO_OUTLOOK,
        settlement: Settlement = _NO_SETTLEMENT,
    ) -> tuple[Mapping[str, bytes], list[Numbered], int]:
        """Renews the lease, takes the report, returns the ticket keys, the directives after
        number `received_directives` and Redis' time in milliseconds.

        One round trip; one more for each tier whose digests have changed since the last report.

        Raises: UnknownNameError (LEASE_EXPIRED, INCARNATION_REPLACED).
        """
        check_identity(data_plane_id, incarnation)
        check_num_digests(sum(len(getattr(residency, tier)) for tier in TIERS))
        digests: dict[str, list[str]] = {
            tier: sorted(set[str](getattr(residency, tier))) for tier in TIERS
        }
        tags = {tier: _tag(digests[tier]) for tier in TIERS}
        reply = await self._store.run(
            "heartbeat",
            data_plane_id,
            _sortable(incarnation),
            load.pack(),
            self._lease_ms,
            *tags.values(),
            received_directives,
            counters.pack(),
            outlook.pack(),
            settlement.number,
            settlement.pack(),
        )
        if reply[0] != "OK":
            raise _lease_lost(reply[0], data_plane_id)
        for tier in reply[1]:
            check_digests(tier, digests[tier])
            await self._store.run(
                "residency",
                data_plane_id,
                _sortable(incarnation),
                self._lease_ms,
                tier,
                tags[tier],
                *digests[tier],
            )
        # Keys vanish from under a live lease only if somebody deletes them by hand.
        keys = decode_keys(reply[3]) if reply[2] else await self._ticket_keys.all()
        return keys, decode_numbered(reply[4]), int(reply[5])

    async def leave(self, data_plane_id: str, incarnation: int) -> None:
        """Ends the lease, if this incarnation holds one."""
        check_identity(data_plane_id, incarnation)
        await self._store.run("leave", data_plane_id, _sortable(incarnation))

    async def data_planes(self, *, with_residency: bool = True) -> list[DataPlane]:
        """The live ones, in order of id. Raises: FleetFullError (RESIDENCY_TOO_LARGE)."""
        what, found = await self._store.run("data_planes", int(with_residency), MAX_LISTED_DIGESTS)
        if what != "OK":
            raise _too_many_digests(int(found))
        planes = map(_data_plane, found)
        return sorted(planes, key=lambda plane: plane.data_plane_id)


def _data_plane(item: list[Any]) -> DataPlane:
    data_plane_id, flat, pool, host, disk = item
    fields = as_dict(flat)
    return DataPlane(
        data_plane_id=data_plane_id,
        incarnation=int(fields["incarnation"]),
        endpoint=fields["endpoint"],
        base_model=fields["base_model"],
        load=Load.unpack(fields["load"]),
        residency=Residency(sorted(pool), sorted(host), sorted(disk)),
        last_heartbeat_ms=int(fields["last_heartbeat_ms"]),
        counters=Counters.unpack(fields.get("counters", "")),
        outlook=Outlook.unpack(fields.get("outlook", "")),
    )


def _sortable(incarnation: int) -> str:
    # Lua's numbers are doubles and would round nanoseconds: compared as text of one length.
    return f"{incarnation:020d}"


def _tag(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:32]


def _join_refusal(
    reply: Sequence[str], data_plane_id: str, base: BaseModelRecord
) -> ControlPlaneError:
    metadata = {"data_plane_id": data_plane_id, "base_model": base.name}
    if reply[0] == "FINGERPRINT":
        return ConflictError(
            "FINGERPRINT_CONFLICT",
            f"base_model {base.name!r} has fingerprint {base.fingerprint[:12]}… here and "
            f"{reply[2][:12]}… on the live data plane {reply[1]!r}: serve the same files, or give "
            "this base model another name",
            metadata={**metadata, "other_data_plane_id": reply[1]},
        )
    if reply[0] == "STALE_INCARNATION":
        return ConflictError(
            "STALE_INCARNATION",
            f"a newer process (incarnation {int(reply[1])}) has joined as {data_plane_id!r}: stop "
            "this one, or give it another data_plane_id",
            metadata={**metadata, "incarnation": str(int(reply[1]))},
        )
    if reply[0] == "FULL":
        return FleetFullError(
            "TOO_MANY_DATA_PLANES",
            f"{MAX_DATA_PLANES:,} data planes are live, the most there may be: {data_plane_id!r} "
            "can join when one has left; more go beside a Redis of their own",
            metadata={"data_plane_id": data_plane_id, "max_data_planes": str(MAX_DATA_PLANES)},
            retry_after_s=_JOIN_AGAIN_S,
        )
    what = {"ADAPTER": "an adapter", "ALIAS": "an alias"}[reply[0]]
    return ConflictError(
        "BASE_MODEL_NAME_TAKEN",
        f"base_model.name {base.name!r} is the name of {what}: remove that, or serve the base "
        "model under another name",
        metadata=metadata,
    )


def _too_many_digests(num_digests: int) -> FleetFullError:
    return FleetFullError(
        "RESIDENCY_TOO_LARGE",
        f"the data planes hold {num_digests:,} or more digests together, and an answer at most "
        f"{MAX_LISTED_DIGESTS:,}: ask without_residency",
        metadata={"field": "without_residency", "max_digests": str(MAX_LISTED_DIGESTS)},
    )


def _lease_lost(code: str, data_plane_id: str) -> UnknownNameError:
    if code == "REPLACED":
        return UnknownNameError(
            "INCARNATION_REPLACED",
            f"another process has joined as {data_plane_id!r} since: join again",
            metadata={"data_plane_id": data_plane_id},
        )
    return UnknownNameError(
        "LEASE_EXPIRED",
        f"data plane {data_plane_id!r} holds no lease: join again",
        metadata={"data_plane_id": data_plane_id},
    )
