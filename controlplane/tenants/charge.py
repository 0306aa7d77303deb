"""What a request is charged to its tenant, and which one it is charged for already."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from chorale import tickets
from chorale.errors import UnauthenticatedError
from controlplane.errors import QuotaError
from controlplane.placement.expectation import RequestNeeds

USUAL_CHARACTERS_PER_TOKEN = 4.0
MAX_CONTINUED_S = 6 * 3600.0
"""How long a ticket that has expired shows what it was for. As CONTINUED's keys in Redis last."""


class Charge(NamedTuple):
    """What one request took off its tenant's limits. first_ticket_id: in hex, where it counts as
    running; else ""."""

    tenant: str
    num_requests: int
    num_tokens: int
    first_ticket_id: str = ""
    ticket_id: str = ""


class Continued(NamedTuple):
    """A request that was charged before, known by its first ticket."""

    first_ticket_id: bytes
    charged_tokens: int


def prompt_tokens(needs: RequestNeeds, characters_per_token: float) -> int:
    """Of the prompt, or about so many where only its characters are known.

    characters_per_token: as data planes measured it; 0 where none did.
    """
    if needs.num_tokens:
        return needs.num_tokens
    return math.ceil(needs.num_characters / (characters_per_token or USUAL_CHARACTERS_PER_TOKEN))


def continued(
    ticket: bytes, keys: Mapping[str, bytes], *, tenant: str, model: str, now_s: float
) -> Continued | None:
    """The request that `ticket` was signed for; None when it does not show that it was one of
    `tenant` for `model` (`name@version`, or a base model).

    now_s: since the Unix epoch.
    """
    try:
        claims = tickets.genuine(ticket, keys)
    except UnauthenticatedError:
        return None
    served = claims.base_model
    if claims.adapter_name:
        served = f"{claims.adapter_name}@{claims.adapter_version}"
    is_old = now_s - claims.expires_at.seconds > MAX_CONTINUED_S
    if is_old or claims.tenant != tenant or served != model:
        return None
    return Continued(claims.first_ticket_id or claims.ticket_id, claims.charged_tokens)


def refused(tenant: str, limit: str, value: str, asked: str, retry_ms: str) -> QuotaError:
    """As the script has them; retry_ms: "" where waiting does not help."""
    retry_after_s = int(retry_ms) / 1000 if retry_ms else None
    return QuotaError(tenant, limit, int(value), int(asked), retry_after_s)
