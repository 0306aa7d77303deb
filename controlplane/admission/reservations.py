"""Requests placed since the last heartbeats, what they asked for, and which prompts went where,
noted in Redis for all replicas; and what those were charged that found no place."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from controlplane.errors import StoreBusyError, StoreUnavailableError
from controlplane.prefetch.batch import Asked, DemandBatch
from controlplane.store.client import Store
from controlplane.tasks import end
from controlplane.tenants.charge import Charge

log = logging.getLogger(__name__)

_DEMAND_INTERVAL_S = 0.1
_TOLD_AGAIN_S = 60.0
_MAX_SENT = 4096  # prefixes in one write
_SENT_KEPT = 20_000  # prefixes of a data plane
_SENT_LIVES_MS = 3_600_000


class Reservations:
    """Counts placements behind the requests' backs: `add` returns at once and one task writes
    what has piled up, so that admission waits for one round trip and not for two.

    What is not written yet is in `unwritten`, for placements of this replica to see meanwhile.
    demand: takes what requests asked for, to be written with it a few times a second, which is soon
    enough for predictions and spares Redis the work for each request; None: nobody wants to know.
    """

    def __init__(self, store: Store, demand: DemandBatch | None = None) -> None:
        self._store = store
        self._demand = demand
        self._pending: Counter[str] = Counter()
        self._in_flight: Counter[str] = Counter()
        self._numbers: list[int] = []
        self._numbers_in_flight: list[int] = []
        self._given_back: list[Charge] = []
        self._sent = _Sent()
        self._wake = asyncio.Event()
        self._demand_due_s = 0.0  # on the event loop's clock
        self._told_until_s: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._write_forever(), name="reservations")

    async def stop(self) -> None:
        """Ends the task; counts not written by then are lost, as heartbeats replace them."""
        if self._task is not None:
            await end(self._task)
            self._task = None

    def add(
        self,
        data_plane_id: str,
        number: int,
        asked: Asked | None = None,
        prefixes: Sequence[str] = (),
    ) -> None:
        """An admission has ended, with a place there; "" with none. number: Redis' own of it.
        asked: None for a request that is no new demand. prefixes: members of SENT_PREFIXES, of its
        prompt, the shortest first."""
        self._pending[data_plane_id] += 1
        self._numbers.append(number)
        if self._demand is not None and asked is not None:
            self._demand.add(data_plane_id, asked)
        if data_plane_id and prefixes:
            self._sent.add(data_plane_id, prefixes)
        self._wake.set()

    def give_back(self, charge: Charge) -> None:
        """A request was charged and placed nowhere."""
        self._given_back.append(charge)
        self._wake.set()

    def unwritten(self, data_plane_id: str) -> int:
        return self._pending[data_plane_id] + self._in_flight[data_plane_id]

    def num_unwritten_before(self, number: int) -> int:
        """Those with no place, too. Replies need not come in the order of their numbers."""
        return sum(each < number for each in (*self._numbers, *self._numbers_in_flight))

    async def _write_forever(self) -> None:
        while True:
            await self._until_due()
            self._wake.clear()
            self._in_flight, self._pending = self._pending, Counter()
            self._numbers_in_flight, self._numbers = self._numbers, []
            given_back, self._given_back = self._given_back, []
            args = [str(value) for item in self._in_flight.items() for value in item]
            try:
                await self._store.run("reserve", self._take_demand(), self._sent.take(), *args)
                if given_back:
                    await self._store.run("give_back", json.dumps(given_back))
            except (StoreUnavailableError, StoreBusyError) as error:
                if self._tells(error.reason):
                    log.warning("placements are not counted: %s", error.message)
            except Exception:
                if self._tells("INTERNAL"):
                    log.exception("placements are not counted")
            self._in_flight = Counter()
            self._numbers_in_flight = []

    def _tells(self, reason: str) -> bool:
        """Not for each write that fails: an outage has as many as requests."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._told_until_s.get(reason, 0.0):
            return False
        self._told_until_s[reason] = now_s + _TOLD_AGAIN_S
        return True

    async def _until_due(self) -> None:
        due_s = self._demand_due_s if self._demand else None
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due_s):
                await self._wake.wait()

    def _take_demand(self) -> str:
        now_s = asyncio.get_running_loop().time()
        if not self._demand or now_s < self._demand_due_s:
            return ""
        self._demand_due_s = now_s + _DEMAND_INTERVAL_S
        return self._demand.take()


class _Sent:
    """Prefixes that are yet to be written. What is more than a write takes is dropped, as nothing
    but placement's guess depends on it."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, None]] = {}
        self._num = 0

    def add(self, data_plane_id: str, prefixes: Sequence[str]) -> None:
        if self._num + len(prefixes) > _MAX_SENT:
            return
        of = self._of.setdefault(data_plane_id, {})
        self._num -= len(of)
        of.update(dict.fromkeys(prefixes))
        self._num += len(of)

    def take(self) -> str:
        """JSON for the script, or ""."""
        if not self._num:
            return ""
        sent = [(data_plane_id, list(of)) for data_plane_id, of in self._of.items()]
        self._of, self._num = {}, 0
        return json.dumps({"max": _SENT_KEPT, "lives_ms": _SENT_LIVES_MS, "sent": sent})
