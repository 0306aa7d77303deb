"""A control plane that scripts FleetService, over real gRPC on 127.0.0.1."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2

from chorale import tickets
from chorale.errors import ChoraleError, NotFoundError, UnauthenticatedError
from chorale.fleet_tls import FleetTls
from chorale.server import Server
from chorale.v1 import admission_pb2, fleet_pb2, fleet_pb2_grpc
from tests.helpers.serving import served
from tests.helpers.waiting import eventually as eventually

TOKEN = "fleet-token"
KEY_ID, KEY = "k1", b"k" * 32
_ids = itertools.count(1)


def make_ticket(
    *,
    data_plane_id: str = "dp-1",
    base_model: str = "base",
    key_id: str = KEY_ID,
    key: bytes = KEY,
    expires_in_s: float = 600.0,
    **claims: Any,
) -> bytes:
    expires_at = timestamp_pb2.Timestamp()
    expires_at.FromNanoseconds(time.time_ns() + int(expires_in_s * 1e9))
    return tickets.sign(
        admission_pb2.TicketClaims(
            ticket_id=next(_ids).to_bytes(8) + os.urandom(8),
            data_plane_id=data_plane_id,
            base_model=base_model,
            expires_at=expires_at,
            **claims,
        ),
        key_id,
        key,
    )


class FakeControlPlane(fleet_pb2_grpc.FleetServiceServicer):
    """Records calls; `join_errors` are raised one by one before Join succeeds."""

    def __init__(self, *, heartbeat_s: float = 0.05) -> None:
        self.joins: list[fleet_pb2.JoinRequest] = []
        self.heartbeats: list[fleet_pb2.HeartbeatRequest] = []
        self.leaves: list[fleet_pb2.LeaveRequest] = []
        self.generations: list[list[fleet_pb2.GenerationReport]] = []
        self.report_errors: list[ChoraleError] = []
        self.holds_ms = 10_000
        self.join_errors: list[ChoraleError] = []
        self.members: dict[str, int] = {}
        self.keys = [fleet_pb2.TicketKey(key_id=KEY_ID, key=KEY)]
        self.directives: list[fleet_pb2.Directive] = []
        self.ahead_s: float | None = (
            None  # its clock, before this machine's; None: it does not tell
        )
        self._heartbeat_s = heartbeat_s

    def forget(self) -> None:
        """As after a restart without memory: every heartbeat is NOT_FOUND until a new Join."""
        self.members.clear()

    async def Join(self, request: fleet_pb2.JoinRequest, context: Any) -> fleet_pb2.JoinResponse:
        self._check(context)
        self.joins.append(request)
        if self.join_errors:
            raise self.join_errors.pop(0)
        self.members[request.data_plane_id] = request.incarnation
        interval = duration_pb2.Duration()
        interval.FromNanoseconds(int(self._heartbeat_s * 1e9))
        return fleet_pb2.JoinResponse(
            lease=duration_pb2.Duration(seconds=5),
            heartbeat_interval=interval,
            ticket_keys=self.keys,
            now=self._now(),
        )

    async def Heartbeat(
        self, request: fleet_pb2.HeartbeatRequest, context: Any
    ) -> fleet_pb2.HeartbeatResponse:
        self._check(context)
        self.heartbeats.append(request)
        if self.members.get(request.data_plane_id) != request.incarnation:
            raise NotFoundError("DATA_PLANE_NOT_FOUND", "no lease; join again")
        directives = [
            each for each in self.directives if each.sequence > request.received_directives
        ]
        return fleet_pb2.HeartbeatResponse(
            ticket_keys=self.keys, directives=directives, now=self._now()
        )

    async def ReportGenerations(
        self, request: fleet_pb2.ReportGenerationsRequest, context: Any
    ) -> fleet_pb2.ReportGenerationsResponse:
        self._check(context)
        if self.report_errors:
            raise self.report_errors.pop(0)
        self.generations.append(list(request.generations))
        holds = duration_pb2.Duration()
        holds.FromMilliseconds(self.holds_ms)
        return fleet_pb2.ReportGenerationsResponse(holds=holds)

    async def Leave(self, request: fleet_pb2.LeaveRequest, context: Any) -> fleet_pb2.LeaveResponse:
        self._check(context)
        self.leaves.append(request)
        self.members.pop(request.data_plane_id, None)
        return fleet_pb2.LeaveResponse()

    def _now(self) -> timestamp_pb2.Timestamp | None:
        if self.ahead_s is None:
            return None
        now = timestamp_pb2.Timestamp()
        now.FromNanoseconds(time.time_ns() + int(self.ahead_s * 1e9))
        return now

    def _check(self, context: Any) -> None:
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            raise UnauthenticatedError("FLEET_TOKEN_WRONG", "fleet token is wrong")


@contextlib.asynccontextmanager
async def serving(
    control_plane: FakeControlPlane, port: int = 0, tls: FleetTls | None = None
) -> AsyncIterator[Server]:
    def add(server: Any) -> None:
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(control_plane, server)

    async with served("chorale.v1.FleetService", add, port, tls) as server:
        yield server
