"""Many generations over one call: each goes its own way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from chorale.errors import ChoraleError, InvalidArgumentError
from chorale.relay import MAX_EVENTS_UNDER_WAY
from chorale.status import from_rpc_error, from_serialized
from chorale.v1 import inference_pb2, relay_pb2
from chorale.v1.relay_pb2_grpc import RelayServiceStub
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_control_plane import eventually, make_ticket
from tests.helpers.fake_engine import FakeScript, go_on
from tests.helpers.leaps import leap
from tests.helpers.rig import EngineLog, Rig

TOKENS = [20 + i % 60 for i in range(400)]
LONG = {"max_context_tokens": 4096}
# Receive windows that are soon full, so that the server has to wait for the reader.
SMALL_WINDOWS = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))


class Session:
    """One Relay call; `events[handle]` is what has come for a generation."""

    def __init__(self, rig: Rig) -> None:
        stub: Any = RelayServiceStub(rig.channel)
        self.call: Any = stub.Relay()
        self.events: dict[int, list[relay_pb2.RelayEvent]] = {}
        self.num_messages = 0

    async def start(self, handle: int, *, timeout_s: float | None = None, **fields: Any) -> None:
        fields = {"ticket": make_ticket(), "prompt": "hello"} | fields
        sampling = inference_pb2.SamplingParameters(**fields.pop("sampling", {}))
        request = inference_pb2.GenerateRequest(sampling=sampling, **fields)
        start = relay_pb2.GenerationStart(request=request, timeout_s=timeout_s)
        await self.send(handle, start=start)

    async def send(self, handle: int, **action: Any) -> None:
        await self.call.write(relay_pb2.RelayRequest(handle=handle, **action))

    async def read(self) -> bool:
        """One message; false at the end of the call."""
        message = await asyncio.wait_for(self.call.read(), 60)
        if message is grpc.aio.EOF:
            return False
        self.num_messages += 1
        for event in message.events:
            self.events.setdefault(event.handle, []).append(event)
        return True

    async def read_to_end_of(self, *handles: int) -> None:
        """All their events, taken as they come; nobody else's are taken."""
        taken = dict.fromkeys(handles, 0)
        while not all(self.has_ended(handle) for handle in handles):
            for handle in handles:
                number = len(self.events.get(handle, ())) - taken[handle]
                if number:
                    taken[handle] += number
                    await self.send(handle, num_taken=number)
            assert await self.read()

    def has_ended(self, handle: int) -> bool:
        events = self.events.get(handle, [])
        last = events[-1] if events else None
        return last is not None and (
            last.WhichOneof("kind") == "failure" or last.response.HasField("finished")
        )

    def tokens(self, handle: int) -> list[int]:
        return [t for e in self.events[handle] for t in e.response.tokens.token_ids]

    def error(self, handle: int) -> ChoraleError:
        return from_serialized(self.events[handle][-1].failure)


async def status_of(session: Session) -> ChoraleError:
    """What the call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        while await session.read():
            pass
        raise AssertionError("the call ended well")
    return from_rpc_error(failed.value)


async def test_generations_side_by_side(start_rig: StartRig) -> None:
    # All six take the same steps.
    script = FakeScript(tokens=TOKENS[:40], interval_s=0.002, first_requests=6)
    async with start_rig(script) as rig:
        session = Session(rig)
        for handle in range(1, 7):
            await session.start(handle, sampling={"max_tokens": 34 + handle})
        await session.read_to_end_of(*range(1, 7))
        for handle in range(1, 7):
            kinds = [e.response.WhichOneof("event") for e in session.events[handle]]
            assert kinds == ["accepted", *["tokens"] * (len(kinds) - 2), "finished"]
            assert session.tokens(handle) == TOKENS[: 34 + handle]
        num_events = sum(map(len, session.events.values()))
        assert session.num_messages < num_events / 2, "what a step made for all comes together"
        session.call.cancel()


async def test_a_failure_is_of_one_generation_only(start_rig: StartRig) -> None:
    async with start_rig(FakeScript(tokens=TOKENS[:20])) as rig:
        session = Session(rig)
        await session.start(1, ticket=b"forged")
        await session.start(2, sampling={"temperature": -1.0})
        await session.start(3)
        await session.read_to_end_of(1, 2, 3)
        assert session.error(1).reason.startswith("TICKET_")
        assert session.error(1).code is grpc.StatusCode.UNAUTHENTICATED
        assert session.error(2).metadata["field"] == "sampling.temperature"
        assert session.tokens(3) == TOKENS[:20]
        assert rig.service.num_open == 0
        await session.start(1)  # its number is free again
        await session.read_to_end_of(1)
        session.call.cancel()


async def test_what_is_not_taken_waits_and_then_comes_as_one(start_rig: StartRig) -> None:
    async with start_rig(FakeScript(tokens=TOKENS, ready=LONG, interval_s=0.001)) as rig:
        session = Session(rig)
        await session.start(1)
        await eventually(lambda: rig.engine.num_open == 0 and rig.service.num_open == 1)
        await session.start(2, sampling={"max_tokens": 5})
        await session.read_to_end_of(2)
        assert session.tokens(2) == TOKENS[:5], "the other one is not held back"
        assert not session.has_ended(1)
        assert len(session.events[1]) == MAX_EVENTS_UNDER_WAY
        assert len(session.tokens(1)) < len(TOKENS)
        await session.read_to_end_of(1)
        assert session.tokens(1) == TOKENS
        sizes = [len(e.response.tokens.token_ids) for e in session.events[1]]
        assert sizes[MAX_EVENTS_UNDER_WAY] == len(TOKENS) - sum(sizes[:MAX_EVENTS_UNDER_WAY])
        session.call.cancel()


async def test_end_frees_at_once(start_rig: StartRig, engine_log: EngineLog) -> None:
    async with start_rig(FakeScript(tokens=TOKENS, ready=LONG, hang_after=3)) as rig:
        session = Session(rig)
        await session.start(1)
        await session.start(2)
        while len(session.events.get(1, ())) < 2 or len(session.events.get(2, ())) < 2:
            await session.read()
        await session.send(1, end=relay_pb2.GenerationEnd())
        await engine_log.wait_for("Abort")
        assert rig.service.num_open == 1, "the other one goes on"
        await session.send(1, end=relay_pb2.GenerationEnd())  # no error
        await session.send(1, num_taken=5)
        session.call.cancel()
        await eventually(lambda: rig.service.num_open == 0)
        assert len(await engine_log.wait_for("Abort", 2)) == 2


async def test_deadline_of_one_generation(start_rig: StartRig) -> None:
    async with start_rig(FakeScript(tokens=TOKENS, ready=LONG, hang_after=3)) as rig:
        session = Session(rig)
        await session.start(1, timeout_s=100)
        while not (1 in session.events and len(session.tokens(1)) == 3):
            assert await session.read()
        leap(100)
        await session.read_to_end_of(1)
        assert session.error(1).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert session.tokens(1) == TOKENS[:3]
        session.call.cancel()


@pytest.mark.parametrize(
    ("handle", "action", "reason"),
    [
        (0, {"start": relay_pb2.GenerationStart()}, "RELAY_HANDLE_INVALID"),
        (1, {"start": relay_pb2.GenerationStart()}, "RELAY_HANDLE_INVALID"),
        (2, {}, "RELAY_ACTION_MISSING"),
    ],
)
async def test_nonsense_ends_the_call_typed(
    start_rig: StartRig, handle: int, action: dict[str, Any], reason: str
) -> None:
    async with start_rig(FakeScript(tokens=TOKENS, ready=LONG, hang_after=3)) as rig:
        session = Session(rig)
        await session.start(1)
        await session.read()
        await session.send(handle, **action)
        error = await status_of(session)
        assert isinstance(error, InvalidArgumentError) and error.reason == reason
        await eventually(lambda: rig.service.num_open == 0)


async def test_caller_that_says_no_more_gets_what_runs(start_rig: StartRig) -> None:
    async with start_rig(FakeScript(tokens=TOKENS[:30], interval_s=0.002)) as rig:
        session = Session(rig)
        await session.start(1)
        await session.call.done_writing()
        while await session.read():
            pass
        assert session.tokens(1) == TOKENS[:30] and session.has_ended(1)
        assert await session.call.code() is grpc.StatusCode.OK


async def test_finish_ends_idle_calls_and_lets_others_end(start_rig: StartRig) -> None:
    async with start_rig(FakeScript(tokens=TOKENS[:30], pause_after=20)) as rig:
        idle, busy = Session(rig), Session(rig)
        await busy.start(1)
        await busy.read()
        await idle.start(1, sampling={"max_tokens": 1})
        await idle.read_to_end_of(1)
        rig.relay.finish()
        assert not await idle.read()
        go_on(rig.log.path)
        while await busy.read():
            pass
        assert busy.tokens(1) == TOKENS[:30]


async def test_callers_that_read_nothing_begin_nothing_more(start_rig: StartRig) -> None:
    num_requests, limit = 1500, 50

    async def forged() -> AsyncIterator[relay_pb2.RelayRequest]:
        request = inference_pb2.GenerateRequest(ticket=b"x" * 64, prompt="x")
        for handle in range(1, num_requests + 1):
            start = relay_pb2.GenerationStart(request=request)
            yield relay_pb2.RelayRequest(handle=handle, start=start)

    async with (
        start_rig(FakeScript(), max_unread_events=limit) as rig,
        grpc.aio.insecure_channel(rig.server.address, options=SMALL_WINDOWS) as channel,
    ):
        stub: Any = RelayServiceStub(channel)
        call = stub.Relay(forged())
        await eventually(lambda: rig.relay.num_unread >= limit)
        await asyncio.sleep(0.1)
        assert rig.relay.num_unread <= limit + 10, "failures wait for a reader, and no more come"
        num_failed = 0
        while (message := await call.read()) is not grpc.aio.EOF:
            num_failed += len(message.events)
        assert num_failed == num_requests
