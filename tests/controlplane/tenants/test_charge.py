from __future__ import annotations

import pytest

from chorale.tickets import sign
from chorale.v1 import admission_pb2 as pb
from controlplane.placement.expectation import RequestNeeds
from controlplane.tenants.charge import MAX_CONTINUED_S, continued, prompt_tokens

KEYS = {"k": b"x" * 32}
NOW_S = 1_000_000.0


@pytest.mark.parametrize(
    ("needs", "ratio", "tokens"),
    [
        (RequestNeeds(num_tokens=7, num_characters=100), 2.0, 7),
        (RequestNeeds(num_characters=9), 2.0, 5),
        (RequestNeeds(num_characters=9), 0.0, 3),
        (RequestNeeds(), 2.0, 0),
        (RequestNeeds(num_tokens=7, num_generated=3), 0.0, 7),  # those are of the answer
    ],
)
def test_prompts(needs: RequestNeeds, ratio: float, tokens: int) -> None:
    assert prompt_tokens(needs, ratio) == tokens


def ticket(expires_s: float = NOW_S, **claims: object) -> bytes:
    made = pb.TicketClaims(ticket_id=b"i" * 16, tenant="acme", base_model="base", **claims)
    made.expires_at.FromSeconds(int(expires_s))
    return sign(made, "k", KEYS["k"])


def first(ticket: bytes, model: str = "base", tenant: str = "acme") -> bytes:
    found = continued(ticket, KEYS, tenant=tenant, model=model, now_s=NOW_S)
    return found.first_ticket_id if found else b""


def test_which_ticket_was_the_first() -> None:
    assert first(ticket()) == b"i" * 16
    assert first(ticket(first_ticket_id=b"f" * 16)) == b"f" * 16
    voice = ticket(adapter_name="voice", adapter_version=2)
    assert first(voice, "voice@2") == b"i" * 16
    for model in ("voice", "voice@1", "base", ""):
        assert first(voice, model) == b""
    assert first(ticket(), tenant="other") == b""
    assert first(ticket(NOW_S - MAX_CONTINUED_S - 1)) == b""
    assert first(b"") == first(b"?") == first(ticket()[:-3] + b"\0\0\0") == b""


def test_what_it_was_charged() -> None:
    found = continued(ticket(charged_tokens=7), KEYS, tenant="acme", model="base", now_s=NOW_S)
    assert found == (b"i" * 16, 7)
