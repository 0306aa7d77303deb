"""From a model's name to a data plane and a signed ticket."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from chorale.tickets import TICKET_ID_BYTES, sign
from chorale.told_clock import ToldClock
from chorale.v1 import admission_pb2
from controlplane.admission.plane_rows import PlaneRow
from controlplane.admission.prefixes import NO_PREFIXES, Prefixes, PrefixKey, ToldPrefixes
from controlplane.admission.reply import AdmitReply, Resolved
from controlplane.admission.reservations import Reservations
from controlplane.admission.source_access import SourceAccess
from controlplane.errors import (
    ControlPlaneError,
    FleetFullError,
    InvalidRequestError,
    NoDataPlaneError,
    StoreUnavailableError,
    UnknownNameError,
    UnreachableError,
)
from controlplane.fleet.ticket_keys import TicketKeys
from controlplane.options import MAX_PRIORITY
from controlplane.placement.expectation import RequestNeeds
from controlplane.placement.placement import (
    Candidate,
    Choice,
    PlacementPolicy,
    Refusal,
    Why,
    place,
)
from controlplane.prefetch.batch import Asked
from controlplane.registry.names import check_reference
from controlplane.store.client import Store
from controlplane.tenants.charge import Charge, Continued, continued, prompt_tokens, refused
from controlplane.tenants.names import DEFAULT_TENANT, check_tenant

MAX_EXCLUDED = 64
MAX_ROUTING_KEY_CHARS = 256
_RETRY_AFTER_S = 1.0  # a heartbeat later, the fleet looks different
_TAKEN_UP_S = 5.0
_NOTHING_KNOWN = RequestNeeds()


@dataclass(frozen=True, slots=True)
class Admitted:
    """expires_at_ms: milliseconds since the Unix epoch, on Redis' clock."""

    model: Resolved
    choice: Choice
    ticket: bytes
    expires_at_ms: int

    @property
    def data_plane(self) -> Candidate:
        return self.choice.candidate


class Admission:
    """One round trip to Redis for each request: name, fleet and load come in one reply.

    ticket_ttl_s: how long a ticket is good, by Redis' clock; data planes of earlier versions go by
    their own, so it must cover that difference. generations_hold_s: how long one counts as running
    after a report of it. tenant_prefixes: as TicketClaims has it.
    """

    def __init__(
        self,
        store: Store,
        ticket_keys: TicketKeys,
        reservations: Reservations,
        policy: PlacementPolicy,
        source_access: SourceAccess,
        prefix_key: PrefixKey,
        *,
        ticket_ttl_s: float,
        generations_hold_s: float,
        max_priority: int = 0,
        tenant_prefixes: bool = False,
    ) -> None:
        self._store = store
        self._ticket_keys = ticket_keys
        self._reservations = reservations
        self._policy = policy
        self._source_access = source_access
        self._prefix_key = prefix_key
        self._ticket_ttl_s = ticket_ttl_s
        self._max_priority = max_priority
        self._tenant_prefixes = tenant_prefixes
        # Who takes a ticket up in its last moment says so a little later.
        self._unused_ms = int((ticket_ttl_s + _TAKEN_UP_S) * 1000)
        self._counts_ms = max(self._unused_ms, int(generations_hold_s * 1000))
        self._clock = ToldClock()
        self._characters_per_token = 0.0  # of the data plane placed on last

    async def admit(
        self,
        model: str,
        *,
        tenant: str = "",
        excluded: Sequence[str] = (),
        source_token: str = "",
        routing_key: str = "",
        needs: RequestNeeds = _NOTHING_KNOWN,
        continued_ticket: bytes = b"",
        told: ToldPrefixes = NO_PREFIXES,
    ) -> Admitted:
        """Places one request. source_token: the caller's, for private sources; shown to no other.
        routing_key: equal ones get the same target of an alias; empty: any. needs: what is known
        of the request; the adapter's part of it is filled in here. continued_ticket: one that a
        request had that goes on: it is not charged to its tenant again. told: of its prompt.

        Raises: InvalidRequestError, UnknownNameError (MODEL_NOT_FOUND), QuotaError, FleetFullError,
        UnreachableError, NoDataPlaneError, StoreUnavailableError; SourceAccessError when the source
        is private and the token does not open it, other SourceError when that cannot be told.
        """
        tenant = tenant or DEFAULT_TENANT
        _check(model, tenant, excluded, routing_key, needs.priority)
        prefixes = self._prefix_key.keyed(tenant, told)
        before: Continued | None = None
        if continued_ticket:
            keys = await self._ticket_keys.known()
            before = continued(
                continued_ticket, keys, tenant=tenant, model=model, now_s=self._clock.now_s()
            )
        ticket_id = secrets.token_bytes(TICKET_ID_BYTES)
        first_hex = before.first_ticket_id.hex() if before else ""
        reply = await self._ask(
            model, tenant, routing_key, needs, prefixes, first_hex, ticket_id.hex()
        )
        self._clock.told(reply.now_ms / 1000)
        placed_at, asked, members = "", None, list[str]()
        max_priority = self._max_priority if reply.max_priority is None else reply.max_priority
        try:
            resolved, choice = await self._choose(
                reply, needs, max_priority, excluded, source_token, prefixes
            )
            placed_at = choice.candidate.data_plane_id
            goes_on = excluded or needs.has_begun
            asked = None if goes_on else _asked(resolved, tenant)
            members = prefixes.members(resolved.prefix_digest)
        finally:
            # Counted before the next await, so that requests of one instant see each other.
            self._reservations.add(placed_at, reply.number, asked, members)
            if not placed_at and (reply.num_charged or reply.running):
                charged = reply.num_charged, reply.tokens_charged
                charge = Charge(tenant, *charged, reply.running, ticket_id.hex())
                self._reservations.give_back(charge)
        outlook = choice.candidate.outlook
        self._characters_per_token = outlook.characters_per_token or self._characters_per_token
        key_id, key = await self._ticket_keys.find(reply.key_id)
        expires_at_ms = reply.now_ms + int(self._ticket_ttl_s * 1000)
        claims = _claims(ticket_id, resolved, choice.candidate, tenant, expires_at_ms)
        claims.max_priority = max_priority
        claims.tenant_prefixes = self._tenant_prefixes
        claims.charged_tokens = reply.tokens_charged
        claims.counts_running = bool(reply.running)
        if before and not reply.num_charged and reply.running in ("", first_hex):
            claims.first_ticket_id, claims.charged_tokens = before
        claims.expected_ttft_s = choice.expected_s or 0.0
        if resolved.private:
            claims.adapter_source_token = source_token
        ticket = sign(claims, key_id, key)
        return Admitted(resolved, choice, ticket, expires_at_ms)

    async def _ask(
        self,
        model: str,
        tenant: str,
        routing_key: str,
        needs: RequestNeeds,
        prefixes: Prefixes,
        first_hex: str,
        ticket_hex: str,
    ) -> AdmitReply:
        """first_hex: the request's first ticket, where it goes on. Raises as `admit`."""
        try:
            reply = await self._store.run(
                "admit",
                model,
                routing_key or secrets.token_hex(8),
                tenant,
                prompt_tokens(needs, self._characters_per_token),
                "" if needs.max_tokens is None else needs.max_tokens,
                first_hex,
                ticket_hex,
                self._unused_ms,
                self._counts_ms,
                *prefixes.marks,
            )
        except asyncio.CancelledError:
            # It may count as running, and nobody gets the ticket that would end that.
            self._reservations.give_back(Charge(tenant, 0, 0, first_hex or ticket_hex, ticket_hex))
            raise
        if reply[0] == "QUOTA":
            raise refused(tenant, *reply[1:])
        if reply[0] == "UNKNOWN":
            raise UnknownNameError(
                "MODEL_NOT_FOUND",
                f"model {model!r} is no adapter, version, alias or base model here: ListAdapters "
                "and ListBaseModels tell those there are",
                metadata={"model": model},
            )
        return AdmitReply.of(reply)

    async def _choose(
        self,
        reply: AdmitReply,
        needs: RequestNeeds,
        max_priority: int,
        excluded: Sequence[str],
        source_token: str,
        prefixes: Prefixes,
    ) -> tuple[Resolved, Choice]:
        """Raises as `admit`."""
        planes = reply.planes
        # Under way elsewhere: nobody knows yet where they go, so they are shared out.
        mine = self._reservations.num_unwritten_before(reply.number)
        others = max(0, reply.num_before - mine)
        candidates = [self._candidate(plane, others / len(planes), prefixes) for plane in planes]
        resolved = reply.resolved
        if resolved.private:
            await self._source_access.require(resolved.source, source_token)
        choice = place(
            candidates,
            replace(
                needs,
                digest=resolved.digest,
                weights_bytes=resolved.weights_bytes,
                priority=min(needs.priority, max_priority),
                compares_prefixes=bool(prefixes.marks),
            ),
            base_model=resolved.base_model,
            excluded=frozenset(excluded),
            now_s=reply.now_ms / 1000,
            policy=self._policy,
        )
        if isinstance(choice, Refusal):
            if reply.refusal and choice.why is Why.NO_DATA_PLANE:
                # Leases end where no heartbeat can be written.
                raise StoreUnavailableError(reply.refusal)
            raise _refused(choice, resolved)
        return resolved, choice

    def _candidate(self, plane: PlaneRow, num_more: float, prefixes: Prefixes) -> Candidate:
        """num_more: requests that may have been placed there, too."""
        unwritten = self._reservations.unwritten(plane.data_plane_id)
        return Candidate(
            data_plane_id=plane.data_plane_id,
            endpoint=plane.endpoint,
            base_model=plane.base_model,
            load=plane.load,
            num_placed=plane.num_placed + unwritten + num_more,
            tier=plane.tier,
            last_heartbeat_s=plane.last_heartbeat_ms / 1000,
            outlook=plane.outlook,
            sent=prefixes.sent(plane.sent),
        )


def _asked(resolved: Resolved, tenant: str) -> Asked:
    """Of a new request: one that has begun, or excludes data planes, was lost by one and goes on,
    where there is no other on the same one."""
    name = f"{resolved.adapter}@{resolved.version}" if resolved.adapter else ""
    return Asked(tenant, resolved.base_model, resolved.digest, name)


def _refused(refusal: Refusal, resolved: Resolved) -> ControlPlaneError:
    why = refusal.why
    metadata = {"base_model": resolved.base_model}
    if why is Why.OUT_OF_REACH:
        return UnreachableError(
            resolved.base_model, expected_s=refusal.expected_s, slo_s=refusal.slo_s
        )
    if why is Why.ALL_FULL:
        return FleetFullError(
            "FLEET_FULL",
            f"{why.value}: try again later, or add data planes",
            metadata=metadata,
            retry_after_s=_RETRY_AFTER_S,
        )
    name = repr(resolved.base_model) if resolved.base_model else "any base model"
    return NoDataPlaneError(
        why.name,
        f"{why.value} ({name}): wait for one to join or recover",
        metadata=metadata,
        retry_after_s=_RETRY_AFTER_S,
    )


def _claims(
    ticket_id: bytes, resolved: Resolved, chosen: Candidate, tenant: str, expires_at_ms: int
) -> admission_pb2.TicketClaims:
    claims = admission_pb2.TicketClaims(
        ticket_id=ticket_id,
        data_plane_id=chosen.data_plane_id,
        tenant=tenant,
        base_model=resolved.base_model,
        adapter_name=resolved.adapter,
        adapter_version=resolved.version,
        adapter_digest=resolved.digest,
        adapter_source=resolved.source,
        adapter_invocation_tokens=resolved.invocation_tokens,
    )
    claims.expires_at.FromMilliseconds(expires_at_ms)
    return claims


def _check(
    model: str, tenant: str, excluded: Sequence[str], routing_key: str, priority: int
) -> None:
    """Raises: InvalidRequestError."""
    if model:
        check_reference("model", model)
    check_tenant("tenant", tenant)
    if len(excluded) > MAX_EXCLUDED:
        raise InvalidRequestError(
            "TOO_MANY_EXCLUDED",
            f"excluded_data_plane_ids holds {len(excluded)}; at most {MAX_EXCLUDED}",
            metadata={"field": "excluded_data_plane_ids"},
        )
    if len(routing_key) > MAX_ROUTING_KEY_CHARS:
        raise InvalidRequestError(
            "ROUTING_KEY_INVALID",
            f"routing_key has {len(routing_key)} characters; at most {MAX_ROUTING_KEY_CHARS}: send "
            "a hash of it",
            metadata={"field": "routing_key"},
        )
    if abs(priority) > MAX_PRIORITY:
        raise InvalidRequestError(
            "PRIORITY_OUT_OF_RANGE",
            f"priority is {priority}; it must be in [-{MAX_PRIORITY}, {MAX_PRIORITY}]",
            metadata={"field": "priority", "value": str(priority)},
        )
