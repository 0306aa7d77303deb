"""Membership in the fleet: join, heartbeats, leave. Serving never waits for any of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection
from typing import Any

import grpc

from chorale.bearer import bearer_metadata
from chorale.channel import CONTROL_PLANE_OPTIONS
from chorale.errors import (
    ChoraleError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from chorale.fleet_channel import open_fleet_channel
from chorale.fleet_tls import FleetTls, is_mismatch, way_out
from chorale.status import from_rpc_error
from chorale.v1 import fleet_pb2, fleet_pb2_grpc
from dataplane.rpc.generations import Generations
from dataplane.rpc.settlements import Settlements

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
_CALL_TIMEOUT_S = 3.0
_LEAVE_TIMEOUT_S = 1.0
_HEARTBEAT_TIMEOUT_S = 1.0  # or the interval, where that is longer
_MIN_HEARTBEAT_INTERVAL_S = 0.05
# Another data plane that served other weights under this base model's name, and is gone, keeps its
# lease for seconds, and certificates are renewed on one side first: what lasts longer than this is
# a real conflict.
_PATIENCE_S = 15.0
_HOPELESS = (InvalidArgumentError, PermissionDeniedError, UnauthenticatedError)

Report = Callable[[], tuple[fleet_pb2.Load, fleet_pb2.Residency]]
OnTime = Callable[[float], None]
OnKeys = Callable[["list[fleet_pb2.TicketKey]"], None]
OnDirective = Callable[[fleet_pb2.Directive], None]


class FleetMember:
    """Keeps this data plane known to the control plane at `address` while it runs.

    join: what Join is called with. report: the load and residency of the moment. on_keys: called
    with the ticket keys of every answer. on_time: with its time, if it tells. on_directive: called
    once with each directive.
    settlements: told with the heartbeats. generations: told as long as it runs. tls: of the
    channel; None: plaintext. Belongs to one event loop; `stop` after `start`. Between `pause` and
    `resume` it is no member, and nothing is placed here.
    """

    def __init__(
        self,
        address: str,
        token: str,
        *,
        join: fleet_pb2.JoinRequest,
        report: Report,
        on_keys: OnKeys,
        on_time: OnTime = lambda _now_s: None,
        on_directive: OnDirective = lambda _directive: None,
        settlements: Settlements | None = None,
        generations: Generations | None = None,
        tls: FleetTls | None = None,
    ) -> None:
        self._metadata = bearer_metadata(token)
        self._join_request = join
        self._report = report
        self._on_keys = on_keys
        self._on_time = on_time
        self._on_directive = on_directive
        self._settlements = settlements or Settlements()
        self._generations = generations
        self._telling: asyncio.Task[None] | None = None
        self._received = 0  # number of the last directive since Join
        self._pins = _Pins()
        self._channel = open_fleet_channel(address, CONTROL_PLANE_OPTIONS, tls)
        self._stub: Any = fleet_pb2_grpc.FleetServiceStub(self._channel)
        self._task: asyncio.Task[None] | None = None
        self._joined: asyncio.Future[None] | None = None

    def start(self) -> None:
        self._joined = asyncio.get_running_loop().create_future()
        if self._generations is not None:
            self._telling = asyncio.create_task(
                self._generations.tell(self._stub, self._metadata), name="generations"
            )
        self._task = asyncio.create_task(self._run(), name="fleet-member")

    async def wait_joined(self) -> None:
        """Until Join has succeeded for the first time, for however long that takes.

        Raises: ChoraleError when the control plane refuses this data plane for good.
        """
        assert self._joined is not None, "start() comes first"
        await asyncio.shield(self._joined)

    async def pause(self) -> None:
        """Leaves the fleet, if the control plane can be reached at once. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        joined = self._joined
        if joined is not None and joined.done() and not joined.exception():
            request = fleet_pb2.LeaveRequest(
                data_plane_id=self._join_request.data_plane_id,
                incarnation=self._join_request.incarnation,
            )
            with contextlib.suppress(grpc.RpcError):
                await self._stub.Leave(request, metadata=self._metadata, timeout=_LEAVE_TIMEOUT_S)

    def resume(self, incarnation: int) -> None:
        """Joins again as a new incarnation, however long that takes; `pause` comes first."""
        assert self._task is None and self._joined is not None, "pause() comes first"
        self._pins = _Pins()  # the new incarnation's engine has none
        request = fleet_pb2.JoinRequest()
        request.CopyFrom(self._join_request)
        # Also where the clock was set back since.
        request.incarnation = max(incarnation, request.incarnation + 1)
        self._join_request = request
        self._task = asyncio.create_task(self._run(), name="fleet-member")

    async def stop(self) -> None:
        """Leaves the fleet, if the control plane can be reached at once. Idempotent."""
        await self.pause()
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        await self._channel.close()

    async def _run(self) -> None:
        assert self._joined is not None
        try:
            while True:
                interval_s = await self._join(give_up=not self._joined.done())
                if not self._joined.done():
                    self._joined.set_result(None)
                await self._beat(interval_s)
        except ChoraleError as error:
            assert not self._joined.done(), "only the first Join gives up"
            self._joined.set_exception(error)
            self._joined.exception()  # retrieved: whoever waits sees it, nobody need wait

    async def _join(self, *, give_up: bool) -> float:
        """Joins, however often it takes; returns the heartbeat interval in seconds."""
        loop = asyncio.get_running_loop()
        began_s, backoff_s, told = loop.time(), _FIRST_BACKOFF_S, ""
        while True:
            try:
                answer: fleet_pb2.JoinResponse = await self._stub.Join(
                    self._join_request, metadata=self._metadata, timeout=_CALL_TIMEOUT_S
                )
            except grpc.RpcError as failure:
                error = from_rpc_error(failure)
                passes = _is_conflict(error) or _is_other_tls(error)
                patience_s = _PATIENCE_S if passes else 0.0
                hopeless = isinstance(error, _HOPELESS) or passes
                if give_up and hopeless and loop.time() - began_s >= patience_s:
                    raise _explained(error) from failure
                if told != error.reason:  # once for each kind of failure, not for each try
                    message = error.message + way_out(error.message)
                    log.warning("cannot join the fleet: %s: %s", error.reason, message)
                    told = error.reason
                await asyncio.sleep(backoff_s * random.uniform(0.75, 1.25))
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
                continue
            self._received = 0
            self._pins.joined()
            self._settlements.joined()
            self._hear(answer)
            log.info("joined the fleet as %s", self._join_request.data_plane_id)
            interval_s = answer.heartbeat_interval.ToNanoseconds() / 1e9
            return max(interval_s, _MIN_HEARTBEAT_INTERVAL_S)

    async def _beat(self, interval_s: float) -> None:
        """Sends heartbeats until the control plane says to join again."""
        loop = asyncio.get_running_loop()
        told = ""
        next_s = loop.time()
        while True:
            load, residency = self._report()
            request = fleet_pb2.HeartbeatRequest(
                data_plane_id=self._join_request.data_plane_id,
                incarnation=self._join_request.incarnation,
                load=load,
                residency=residency,
                received_directives=self._received,
                settlement=self._settlements.next(),
            )
            try:
                answer: fleet_pb2.HeartbeatResponse = await self._stub.Heartbeat(
                    request, metadata=self._metadata, timeout=max(interval_s, _HEARTBEAT_TIMEOUT_S)
                )
                self._settlements.arrived()
                self._hear(answer)
                self._take(answer.directives)
                if told:
                    log.info("heartbeats reach the control plane again")
                    told = ""
            except grpc.RpcError as failure:
                error = from_rpc_error(failure)
                if isinstance(error, NotFoundError):
                    log.warning("the control plane asks to join again: %s", error.message)
                    return
                if told != error.reason:
                    log.warning("a heartbeat failed: %s: %s", error.reason, error.message)
                    told = error.reason
            next_s = max(next_s + interval_s, loop.time())
            await asyncio.sleep(next_s - loop.time())

    def _hear(self, answer: fleet_pb2.JoinResponse | fleet_pb2.HeartbeatResponse) -> None:
        self._on_keys(list(answer.ticket_keys))
        if answer.HasField("now"):
            self._on_time(answer.now.ToNanoseconds() / 1e9)

    def _take(self, directives: Collection[fleet_pb2.Directive]) -> None:
        for directive in directives:
            if directive.sequence > self._received:
                self._received = directive.sequence
                self._pins.take(directive)
                self._on_directive(directive)
        if not directives:
            for digest in self._pins.undone():
                self._on_directive(
                    fleet_pb2.Directive(action=fleet_pb2.ADAPTER_ACTION_UNPIN, digest=digest)
                )


class _Pins:
    """What is pinned here, by the directives. All pins are told anew after a Join: one that is not
    was undone while this data plane held no lease."""

    def __init__(self) -> None:
        self._told: set[str] = set()  # since Join
        self._before: set[str] = set()  # and not since

    def joined(self) -> None:
        self._before |= self._told
        self._told = set()

    def take(self, directive: fleet_pb2.Directive) -> None:
        if directive.action == fleet_pb2.ADAPTER_ACTION_PREFETCH:
            return
        self._before.discard(directive.digest)
        if directive.action == fleet_pb2.ADAPTER_ACTION_PIN:
            self._told.add(directive.digest)
        else:
            self._told.discard(directive.digest)

    def undone(self) -> list[str]:
        """Once all directives since Join were taken; each is told once."""
        gone, self._before = sorted(self._before), set()
        return gone


def _is_other_tls(error: ChoraleError) -> bool:
    return isinstance(error, UnavailableError) and is_mismatch(error.message)


def _explained(error: ChoraleError) -> ChoraleError:
    if not _is_other_tls(error):
        return error
    message = f"cannot join the fleet: {error.message}{way_out(error.message)}"
    return FailedPreconditionError("FLEET_TLS_MISMATCH", message)


def _is_conflict(error: ChoraleError) -> bool:
    return isinstance(error, FailedPreconditionError)
