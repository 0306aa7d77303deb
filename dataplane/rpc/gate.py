"""Who may start a generation here: tickets, each good for one request."""

from __future__ import annotations

from collections.abc import Iterable

from chorale import tickets
from chorale.errors import PermissionDeniedError, UnauthenticatedError
from chorale.told_clock import ToldClock
from chorale.v1 import admission_pb2, fleet_pb2

_MAX_REMEMBERED_TICKETS = 1 << 18


class TicketGate:
    """Verifies tickets with the keys that the control plane hands out, by its time."""

    def __init__(self, data_plane_id: str, base_model: str, clock: ToldClock | None = None) -> None:
        self._data_plane_id = data_plane_id
        self._base_model = base_model
        self._clock = clock or ToldClock()
        self._keys: dict[str, bytes] = {}
        self._used = tickets.TicketReplayGuard(_MAX_REMEMBERED_TICKETS)

    def set_keys(self, keys: Iterable[fleet_pb2.TicketKey]) -> None:
        """Replaces the keys that tickets may be signed with."""
        self._keys = {key.key_id: key.key for key in keys}

    def enter(self, ticket: bytes, *, tenant: str) -> admission_pb2.TicketClaims:
        """The claims of a genuine ticket, which is used up with this call.

        tenant: what the request says; empty leaves it to the ticket.
        Raises: UnauthenticatedError for the ticket; PermissionDeniedError when it was signed for
        another tenant; ResourceExhaustedError when too many used tickets have yet to expire.
        """
        now = self._clock.now_s()
        claims = tickets.verify(ticket, self._keys, data_plane_id=self._data_plane_id, now=now)
        if claims.base_model != self._base_model:
            raise UnauthenticatedError(
                "TICKET_WRONG_BASE_MODEL",
                f"ticket is for base model {claims.base_model[:200]!r}, this data plane serves "
                f"{self._base_model!r}: call Admit again for a fresh one",
                metadata={"ticket_base_model": claims.base_model[:200]},
            )
        admitted = claims.tenant or "default"
        if tenant and tenant != admitted:
            raise PermissionDeniedError(
                "TENANT_MISMATCH",
                f"tenant is {tenant[:200]!r}, the ticket was signed for {admitted[:200]!r}: "
                "leave tenant empty, or call Admit for that tenant",
                metadata={"field": "tenant", "ticket_tenant": admitted[:200]},
            )
        self._used.use(claims, now=now)
        return claims
