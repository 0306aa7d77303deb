"""Tickets: what the control plane signs at Admit and a data plane asks for at Generate."""

from __future__ import annotations

import hashlib
import heapq
import hmac
from collections.abc import Mapping

from google.protobuf.message import DecodeError

from chorale.errors import ResourceExhaustedError, UnauthenticatedError
from chorale.v1 import admission_pb2

MAX_TICKET_BYTES = 16 * 1024
TICKET_ID_BYTES = 16
_WAY_OUT = "call Admit again for a fresh one"


def sign(claims: admission_pb2.TicketClaims, key_id: str, key: bytes) -> bytes:
    """The ticket for `claims`: a serialized SignedTicket, HMAC-SHA256 with `key`."""
    raw = claims.SerializeToString()
    return admission_pb2.SignedTicket(
        claims=raw, signature=_signature(key, raw), key_id=key_id
    ).SerializeToString()


def verify(
    ticket: bytes, keys: Mapping[str, bytes], *, data_plane_id: str, now: float
) -> admission_pb2.TicketClaims:
    """The claims of a ticket that is genuine, for this data plane, and not expired.

    keys: key id to key, as Join and Heartbeat return them. now: seconds since the Unix epoch.
    Nothing in the ticket is believed before its signature is found right.

    Raises: UnauthenticatedError with the reason TICKET_MISSING, TICKET_MALFORMED, TICKET_FORGED,
    TICKET_WRONG_DATA_PLANE or TICKET_EXPIRED.
    """
    claims = genuine(ticket, keys)
    _check_claims(claims, data_plane_id, now)
    return claims


def genuine(ticket: bytes, keys: Mapping[str, bytes]) -> admission_pb2.TicketClaims:
    """The claims of a ticket that was signed with one of `keys`, for whomever and whenever.

    Raises: UnauthenticatedError with the reason TICKET_MISSING, TICKET_MALFORMED or TICKET_FORGED.
    """
    if not ticket:
        raise UnauthenticatedError("TICKET_MISSING", f"ticket is empty: {_WAY_OUT}")
    if len(ticket) > MAX_TICKET_BYTES:
        raise _malformed(f"it has {len(ticket)} bytes, more than {MAX_TICKET_BYTES}")
    try:
        signed = admission_pb2.SignedTicket.FromString(ticket)
    except DecodeError:
        raise _malformed("it is not a SignedTicket") from None
    if not signed.claims or not signed.signature or not signed.key_id:
        raise _malformed("claims, signature or key_id is empty")
    key = keys.get(signed.key_id, b"")
    genuine = hmac.compare_digest(_signature(key, signed.claims), signed.signature)
    if not key or not genuine:
        raise UnauthenticatedError(
            "TICKET_FORGED",
            f"ticket is not signed with a key in use here: {_WAY_OUT}",
            metadata={"key_id": signed.key_id[:64]},
        )
    try:
        claims = admission_pb2.TicketClaims.FromString(signed.claims)
    except DecodeError:
        raise _malformed("its claims are not TicketClaims") from None
    if len(claims.ticket_id) != TICKET_ID_BYTES or not claims.HasField("expires_at"):
        raise _malformed("its claims lack ticket_id or expires_at")
    return claims


class TicketReplayGuard:
    """Remembers used tickets until they expire, so that each is good for one request.

    Not thread-safe: one per event loop. At most `max_entries` tickets are remembered; as forgetting
    one early would let it be used twice, `use` refuses further tickets while all of them are live.
    """

    def __init__(self, max_entries: int) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, not {max_entries}")
        self._max_entries = max_entries
        self._used: set[bytes] = set()
        self._by_expiry: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._used)

    def use(self, claims: admission_pb2.TicketClaims, *, now: float) -> None:
        """Marks the ticket as used. Call it after `verify`, once for each request.

        Raises: UnauthenticatedError (TICKET_USED); ResourceExhaustedError (TICKET_GUARD_FULL) with
        the time after which an entry expires.
        """
        while self._by_expiry and self._by_expiry[0][0] <= now:
            self._used.discard(heapq.heappop(self._by_expiry)[1])
        if claims.ticket_id in self._used:
            raise UnauthenticatedError(
                "TICKET_USED", f"ticket has been used for another request: {_WAY_OUT}"
            )
        if len(self._used) >= self._max_entries:
            raise ResourceExhaustedError(
                "TICKET_GUARD_FULL",
                f"{self._max_entries} tickets were used here that are yet to expire; try again "
                "later, or on another data plane",
                retry_after_s=max(self._by_expiry[0][0] - now, 0.001),
            )
        self._used.add(claims.ticket_id)
        heapq.heappush(self._by_expiry, (_expiry(claims), claims.ticket_id))


def _check_claims(claims: admission_pb2.TicketClaims, data_plane_id: str, now: float) -> None:
    if claims.data_plane_id != data_plane_id:
        raise UnauthenticatedError(
            "TICKET_WRONG_DATA_PLANE",
            f"ticket is for data plane {claims.data_plane_id[:128]!r}, this is "
            f"{data_plane_id!r}: use the endpoint that Admit returned with it, or {_WAY_OUT}",
            metadata={"ticket_data_plane_id": claims.data_plane_id[:128]},
        )
    if _expiry(claims) <= now:
        raise UnauthenticatedError(
            "TICKET_EXPIRED",
            f"ticket expired {now - _expiry(claims):.3f} s ago: {_WAY_OUT}",
            metadata={"expired_s": f"{now - _expiry(claims):.3f}"},
        )


def _expiry(claims: admission_pb2.TicketClaims) -> float:
    return claims.expires_at.seconds + claims.expires_at.nanos / 1e9


def _signature(key: bytes, raw: bytes) -> bytes:
    return hmac.new(key, raw, hashlib.sha256).digest()


def _malformed(problem: str) -> UnauthenticatedError:
    return UnauthenticatedError("TICKET_MALFORMED", f"ticket cannot be read, {problem}: {_WAY_OUT}")
