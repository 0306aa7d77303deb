"""Tickets: only genuine, fresh, unused ones for this data plane pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorale.errors import ResourceExhaustedError, UnauthenticatedError
from chorale.tickets import MAX_TICKET_BYTES, TicketReplayGuard, sign, verify
from chorale.v1 import admission_pb2 as pb

KEYS = {"k1": b"1" * 32, "k2": b"2" * 32}
NOW = 1_800_000_000.0


def claims(**changes: Any) -> pb.TicketClaims:
    fields: dict[str, Any] = {
        "ticket_id": bytes(16),
        "data_plane_id": "dp-0",
        "tenant": "default",
        "base_model": "tiny/llama",
        "adapter_name": "voice",
        "adapter_version": 3,
        "adapter_digest": "d" * 64,
        "adapter_source": "file:///a",
    }
    message = pb.TicketClaims(**{**fields, **changes})
    message.expires_at.FromSeconds(int(NOW) + 30)
    return message


def signed(**changes: Any) -> bytes:
    return sign(claims(**changes), "k2", KEYS["k2"])


def refused(ticket: bytes, now: float = NOW, data_plane_id: str = "dp-0") -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        verify(ticket, KEYS, data_plane_id=data_plane_id, now=now)
    assert "Admit" in caught.value.message
    return caught.value.reason


def test_a_genuine_ticket() -> None:
    assert verify(signed(), KEYS, data_plane_id="dp-0", now=NOW + 29.9) == claims()


def test_expiry_and_place() -> None:
    assert refused(signed(), now=NOW + 30) == "TICKET_EXPIRED"
    assert refused(signed(), data_plane_id="dp-1") == "TICKET_WRONG_DATA_PLANE"


def _edited(edit: Callable[[pb.SignedTicket], None]) -> bytes:
    ticket = pb.SignedTicket.FromString(signed())
    edit(ticket)
    return ticket.SerializeToString()


def _other_claims(ticket: pb.SignedTicket) -> None:
    ticket.claims = claims(tenant="rich").SerializeToString()


def _set(field: str, value: Any) -> Callable[[pb.SignedTicket], None]:
    return lambda ticket: setattr(ticket, field, value)


@pytest.mark.parametrize(
    ("ticket", "reason"),
    [
        (b"", "TICKET_MISSING"),
        (b"\xff" * 50, "TICKET_MALFORMED"),
        (b"x" * (MAX_TICKET_BYTES + 1), "TICKET_MALFORMED"),
        (_edited(_set("signature", b"")), "TICKET_MALFORMED"),
        (_edited(_set("key_id", "")), "TICKET_MALFORMED"),
        (_edited(_other_claims), "TICKET_FORGED"),
        (_edited(_set("signature", b"0" * 32)), "TICKET_FORGED"),
        (_edited(_set("key_id", "k1")), "TICKET_FORGED"),
        (_edited(_set("key_id", "unknown")), "TICKET_FORGED"),
        (sign(claims(), "unknown", b""), "TICKET_FORGED"),
        (signed(ticket_id=b"short"), "TICKET_MALFORMED"),
        (sign(pb.TicketClaims(ticket_id=bytes(16)), "k1", KEYS["k1"]), "TICKET_MALFORMED"),
    ],
)
def test_refusals(ticket: bytes, reason: str) -> None:
    assert refused(ticket) == reason


@given(st.binary(max_size=300))
def test_nothing_but_typed_errors(ticket: bytes) -> None:
    assert refused(ticket).startswith("TICKET_")


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=7))
def test_every_bit_counts(position: int, bit: int) -> None:
    ticket = bytearray(signed())
    ticket[position % len(ticket)] ^= 1 << bit
    try:
        found = verify(bytes(ticket), KEYS, data_plane_id="dp-0", now=NOW)
    except UnauthenticatedError:
        return
    assert found == claims()  # a bit that protobuf gives no meaning


def test_a_ticket_is_good_once() -> None:
    guard = TicketReplayGuard(10)
    guard.use(claims(), now=NOW)
    with pytest.raises(UnauthenticatedError) as caught:
        guard.use(claims(), now=NOW + 29)
    assert caught.value.reason == "TICKET_USED"
    guard.use(claims(ticket_id=b"1" * 16), now=NOW)
    assert len(guard) == 2


def test_the_guard_is_bounded_and_forgets_expired_ones() -> None:
    guard = TicketReplayGuard(3)
    for i in range(3):
        guard.use(claims(ticket_id=bytes([i] * 16)), now=NOW)
    with pytest.raises(ResourceExhaustedError) as caught:
        guard.use(claims(ticket_id=b"9" * 16), now=NOW + 10)
    assert caught.value.reason == "TICKET_GUARD_FULL"
    assert caught.value.retry_after_s == pytest.approx(20)
    later = claims(ticket_id=b"9" * 16)
    later.expires_at.FromSeconds(int(NOW) + 90)
    guard.use(later, now=NOW + 30)
    assert len(guard) == 1
