"""The task that predicts: one control plane at a time, all state in Redis."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from controlplane.errors import StoreBusyError, StoreUnavailableError
from controlplane.fleet.directives import Directive
from controlplane.prefetch.limits import DemandLimits
from controlplane.prefetch.model import Ask, Plan, Snapshot
from controlplane.prefetch.planner import plan
from controlplane.prefetch.policy import PrefetchPolicy
from controlplane.prefetch.snapshot import decode_snapshot
from controlplane.store.client import Store
from controlplane.tasks import end

log = logging.getLogger(__name__)

TICK_S = 1.0
_LEASE_TICKS = 4


class Predictor:
    """Looks at demand and fleet every `tick_s` and tells data planes what to bring.

    Whoever holds the lease in Redis does; the others try to take it every tick, so that one that
    dies is replaced within a few. Nothing is kept here between two ticks.
    """

    def __init__(
        self,
        store: Store,
        policy: PrefetchPolicy,
        limits: DemandLimits,
        *,
        tick_s: float = TICK_S,
    ) -> None:
        self._store = store
        self._policy = policy
        self._limits = limits
        self._tick_s = tick_s
        self._id = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self.is_active = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._tick_forever(), name="predictor")

    async def stop(self) -> None:
        """Ends the task, and lets another control plane go on at once."""
        if self._task is None:
            return
        await end(self._task)
        self._task = None
        if self.is_active:
            self.is_active = False
            with suppress(StoreUnavailableError, StoreBusyError):
                await self._store.run("release_predictor", self._id)

    async def tick(self) -> None:
        """One look, when it is this control plane that predicts. Raises: StoreUnavailableError,
        StoreBusyError."""
        lease_ms = int(self._tick_s * _LEASE_TICKS * 1000)
        reply = await self._store.run("predict", self._id, lease_ms, self._limits.json)
        self.is_active = reply[0] == "OK"
        if not self.is_active:
            return
        snapshot = decode_snapshot(reply, self._limits, self._policy)
        made = plan(snapshot, self._policy)
        if made.asks:
            await self._tell(made, snapshot)

    async def _tell(self, made: Plan, snapshot: Snapshot) -> None:
        now_ms = int(snapshot.now_s * 1000)
        asked = {ask.data_plane_id for ask in made.asks}
        debts = [[name, made.debts[name], now_ms] for name in sorted(asked)]
        told = await self._store.run(
            "prefetch",
            self._id,
            self._limits.json,
            ask_rows(made.asks),
            msgspec.json.encode(debts).decode(),
        )
        log.debug("predicted %s", told)

    async def _tick_forever(self) -> None:
        told = ""
        while True:
            try:
                await self.tick()
                told = ""
            except (StoreUnavailableError, StoreBusyError) as error:
                self.is_active = False
                if told != error.reason:  # once for each kind of failure, not for each try
                    log.warning("nothing is predicted: %s", error.message)
                    told = error.reason
            except Exception:
                self.is_active = False
                if told != "INTERNAL":
                    log.exception("nothing is predicted")
                    told = "INTERNAL"
            await asyncio.sleep(self._tick_s)


def ask_rows(asks: Sequence[Ask]) -> str:
    """As script `prefetch` takes them."""
    return msgspec.json.encode([_row(ask) for ask in asks]).decode()


def _row(ask: Ask) -> list[object]:
    wanted = ask.wanted
    directive = Directive(
        action="prefetch",
        digest=wanted.digest,
        source=wanted.source,
        name=wanted.name,
        base_model=wanted.base_model,
        tier=ask.tier,
    )
    return [
        ask.data_plane_id,
        wanted.identity,
        msgspec.json.encode(directive).decode(),
        ask.kind,
        ask.tier,
        wanted.size_bytes,
        int(ask.horizon_s * 1000),
        wanted.private,
    ]
