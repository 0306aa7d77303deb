"""Generations of tenants that may have only so many at once, told to the control plane."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Generator
from typing import Any

import grpc

from chorale.status import from_rpc_error
from chorale.v1 import admission_pb2, fleet_pb2

log = logging.getLogger(__name__)

_MAX_TOLD = 2000  # as ReportGenerationsRequest has it
_MAX_ENDED = 10_000  # waiting to be told; of the others the control plane finds out by itself
_INTERVAL_S = 1.0
_SHORTEST_S = 0.1  # from one report to the next
_CALL_TIMEOUT_S = 3.0
_LOST_REPORTS = 4  # so many in a row may be lost


class Generations:
    """Those under way, and those that have ended since they were told of. Costs nothing while no
    ticket says that it counts. Belongs to one event loop."""

    def __init__(self) -> None:
        self._open: dict[bytes, fleet_pb2.GenerationReport] = {}  # longest untold first
        self._ended: deque[fleet_pb2.GenerationReport] = deque(maxlen=_MAX_ENDED)
        self._begun, self._news = asyncio.Event(), asyncio.Event()
        self._interval_s = _INTERVAL_S

    @contextlib.contextmanager
    def running(self, claims: admission_pb2.TicketClaims) -> Generator[None]:
        """While the generation of this ticket holds a place."""
        if not claims.counts_running:
            yield
            return
        report = fleet_pb2.GenerationReport(
            tenant=claims.tenant,
            first_ticket_id=claims.first_ticket_id or claims.ticket_id,
            ticket_id=claims.ticket_id,
        )
        self._open[claims.ticket_id] = report
        self._begun.set()
        try:
            yield
        finally:
            del self._open[claims.ticket_id]
            ended = fleet_pb2.GenerationReport(has_ended=True)
            ended.MergeFrom(report)
            self._ended.append(ended)
            self._begun.set()
            self._news.set()

    async def tell(self, stub: Any, metadata: Any) -> None:
        """Tells the control plane for ever: who has ended at once, who runs every second. One that
        does not know of it, as of an earlier version, is asked again every now and then."""
        told = ""
        while True:
            await self._begun.wait()
            self._news.clear()
            try:
                await self._tell_once(stub, metadata)
            except grpc.RpcError as failure:
                error = from_rpc_error(failure)
                if told != error.reason:
                    log.warning("generations are not told: %s: %s", error.reason, error.message)
                    told = error.reason
                await asyncio.sleep(self._interval_s)
                continue
            told = ""
            if not self._open and not self._ended:
                self._begun.clear()
            await asyncio.sleep(_SHORTEST_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s - _SHORTEST_S):
                    await self._news.wait()

    async def _tell_once(self, stub: Any, metadata: Any) -> None:
        ended = [self._ended[at] for at in range(min(len(self._ended), _MAX_TOLD))]
        running = list(self._open.values())[: _MAX_TOLD - len(ended)]
        request = fleet_pb2.ReportGenerationsRequest(generations=[*ended, *running])
        if not request.generations:
            return
        answer: fleet_pb2.ReportGenerationsResponse = await stub.ReportGenerations(
            request, metadata=metadata, timeout=_CALL_TIMEOUT_S
        )
        holds_s = answer.holds.ToNanoseconds() / 1e9
        self._interval_s = min(_INTERVAL_S, max(holds_s / _LOST_REPORTS, 2 * _SHORTEST_S))
        for each in ended:
            if self._ended and self._ended[0] is each:
                self._ended.popleft()
        for each in running:  # so that many are told of in turn
            if self._open.pop(each.ticket_id, None) is not None:
                self._open[each.ticket_id] = each
