"""How many generations tenants have at once, as data planes tell it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from chorale.tickets import TICKET_ID_BYTES
from controlplane.errors import InvalidRequestError
from controlplane.store.client import Store
from controlplane.tenants.names import is_tenant

MAX_TOLD = 2000
"""As ReportGenerationsRequest has it."""


class Told(NamedTuple):
    """One generation. first_ticket_id: of its request; its ticket_id where it does not go on."""

    tenant: str
    first_ticket_id: bytes
    ticket_id: bytes
    has_ended: bool


class Running:
    """Admission counts a request when it lets it in (admit.lua); this keeps it counted.

    holds_s: how long it counts after a report.
    """

    def __init__(self, store: Store, *, holds_s: float) -> None:
        self._store = store
        self.holds_s = holds_s

    async def report(self, generations: Sequence[Told]) -> None:
        """Without those that cannot be. Raises: InvalidRequestError, StoreUnavailableError."""
        if len(generations) > MAX_TOLD:
            raise InvalidRequestError(
                "TOO_MANY_GENERATIONS",
                f"generations holds {len(generations)}; at most {MAX_TOLD}: tell the others after",
                metadata={"field": "generations", "value": str(len(generations))},
            )
        if told := list(_packed(generations)):
            await self._store.run("running", int(self.holds_s * 1000), json.dumps(told))


def _packed(generations: Iterable[Told]) -> Iterable[tuple[str, str, str, bool]]:
    for each in generations:
        ids = each.first_ticket_id, each.ticket_id
        if is_tenant(each.tenant) and all(len(one) == TICKET_ID_BYTES for one in ids):
            yield each.tenant, ids[0].hex(), ids[1].hex(), each.has_ended
