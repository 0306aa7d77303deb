"""Tickets that their generation leaves unused, as when its client goes while it is admitted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from chorale.errors import ResourceExhaustedError
from chorale.v1 import admission_pb2 as admission_pb
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from controlplane.gateway.channels import ChannelCache

log = logging.getLogger(__name__)

_MAX_CALLS = 256  # to data planes at once; further ones wait
_MAX_UNDER_WAY = 4096  # waiting ones, too; then no generation begins that could leave another
_TIMEOUT_S = 3.0


class UnusedTickets:
    """Uses them up, so that the place of a tenant with a `max_running` is free at once and not when
    the ticket lapses: the data plane refuses a request without a prompt, takes its ticket all the
    same, and tells that it has ended. Nobody can generate with it any more.

    None is left out. Their number stays below `_MAX_UNDER_WAY` and the generations that were open
    when it was reached: `check` is to be asked before each. One event loop's."""

    def __init__(self, channels: ChannelCache) -> None:
        self._channels = channels
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls = asyncio.Semaphore(_MAX_CALLS)

    def check(self) -> None:
        """Raises: ResourceExhaustedError when there are too many for a further generation."""
        if len(self._tasks) >= _MAX_UNDER_WAY:
            raise ResourceExhaustedError(
                "GATEWAY_FULL",
                f"{_MAX_UNDER_WAY:,} requests that were cancelled are yet to be given back by the "
                "gateway; try again soon or at another gateway",
                metadata={"limit": str(_MAX_UNDER_WAY)},
                retry_after_s=1.0,
            )

    def add(self, place: admission_pb.AdmitResponse) -> None:
        """One that may have been used, too: then nothing comes of it."""
        if _counts_running(place.ticket):
            self._start(self._use_up(place))

    def add_admission(self, answer: asyncio.Future[Any]) -> None:
        """Of an admission under way that nobody waits for any more."""
        self._start(self._use_up_admitted(answer))

    async def close(self) -> None:
        """Lets go of those under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _use_up_admitted(self, answer: asyncio.Future[Any]) -> None:
        with contextlib.suppress(grpc.RpcError):
            place = await answer
            if _counts_running(place.ticket):
                await self._use_up(place)

    async def _use_up(self, place: admission_pb.AdmitResponse) -> None:
        async with self._calls, self._channels.lease(place.endpoint) as channel:
            stub: Any = InferenceServiceStub(channel)
            call = stub.Generate(pb.GenerateRequest(ticket=place.ticket), timeout=_TIMEOUT_S)
            try:
                await anext(aiter(call), None)
            except grpc.RpcError as error:
                log.debug("an unused ticket: %s", error)
            finally:
                call.cancel()


def _counts_running(ticket: bytes) -> bool:
    """Not verified: that is for the data plane to do."""
    try:
        signed = admission_pb.SignedTicket.FromString(ticket)
        return admission_pb.TicketClaims.FromString(signed.claims).counts_running
    except DecodeError:
        return False
