"""Streams that end before their answer: errors, deadlines, cancelling, a lost engine, a drain."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from chorale.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    UnavailableError,
)
from chorale.status import from_rpc_error
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_control_plane import eventually
from tests.helpers.fake_engine import FakeScript, go_on
from tests.helpers.leaps import leap
from tests.helpers.rig import EngineLog


async def test_engine_errors_reach_the_client(start_rig: StartRig) -> None:
    fail = {
        "code": "FAILED_PRECONDITION",
        "reason": "ADAPTER_REFUSED",
        "message": "rank 7",
        "metadata": {"rank": "7"},
    }
    async with start_rig(FakeScript(fail_after=0, fail=fail)) as rig:
        with pytest.raises(FailedPreconditionError, match="rank 7") as raised:
            await rig.generate()
    assert (raised.value.reason, raised.value.metadata) == ("ADAPTER_REFUSED", {"rank": "7"})


@pytest.mark.parametrize("hang_after", [0, 2])
async def test_deadline_in_queue_and_in_stream(
    start_rig: StartRig, engine_log: EngineLog, hang_after: int
) -> None:
    async with start_rig(FakeScript(hang_after=hang_after)) as rig:
        before = time.monotonic()
        answer = asyncio.create_task(rig.generate(timeout=100))
        (submit,) = await engine_log.wait_for("Submit")
        # gRPC tells so long a time in steps of a second.
        assert before + 90 < submit["deadline_s"] < time.monotonic() + 101
        leap(102)
        with pytest.raises(DeadlineExceededError) as raised:
            await answer
        assert raised.value.reason == "DEADLINE_EXCEEDED", "typed, not the client's own"
        await engine_log.wait_for("Abort")


async def test_cancelling_aborts_in_the_engine_at_once(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    async with start_rig(FakeScript(hang_after=1)) as rig:
        call = rig.call()
        await call.read()
        await call.read()
        call.cancel()
        (abort,) = await engine_log.wait_for("Abort")
        assert abort["handle"] == engine_log.of("Submit")[0]["handle"]
        await eventually(lambda: rig.service._num_open == 0)


async def test_cancelling_a_reader_that_does_not_read_aborts_too(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    script = FakeScript(
        tokens=[20] * 400_000,
        burst=4000,
        interval_s=0.02,
        hang_after=396_000,
        ready={"max_context_tokens": 500_000},
    )
    async with start_rig(script) as rig:
        call = rig.call()
        await call.read()
        await asyncio.sleep(0.3)
        call.cancel()
        await engine_log.wait_for("Abort")
        await eventually(lambda: rig.service._num_open == 0)


async def test_engine_crash_ends_open_streams_unavailable(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    async with start_rig(FakeScript(crash_after=2)) as rig:
        answers = await asyncio.gather(*(rig.generate() for _ in range(3)), return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, UnavailableError)
            assert (answer.reason, answer.retry_after_s) == ("ENGINE_LOST", 1.0)
    assert len(engine_log.losses) == 1


async def test_drain_lets_short_streams_finish_and_ends_long_ones(start_rig: StartRig) -> None:
    script = FakeScript(tokens=[20] * 50, hang_after=10, pause_after=1)
    async with start_rig(script) as rig:
        short, long = rig.call(sampling={"max_tokens": 3}), rig.call()
        await short.read()
        await long.read()
        draining = asyncio.create_task(rig.service.drain(100, asyncio.Event()))
        await asyncio.sleep(0)
        go_on(rig.log.path)
        last = None
        while (event := await short.read()) is not grpc.aio.EOF:
            last = event
        assert last is not None and last.WhichOneof("event") == "finished"
        assert not draining.done()
        leap(100)
        await draining
        with pytest.raises(grpc.RpcError) as ended:
            while await long.read() is not grpc.aio.EOF:
                pass
        with pytest.raises(UnavailableError) as refused:
            await rig.generate()
        for error in (from_rpc_error(ended.value), refused.value):
            assert isinstance(error, UnavailableError) and error.reason == "SHUTTING_DOWN"


async def test_a_drain_is_over_when_nothing_runs_or_somebody_is_in_a_hurry(
    start_rig: StartRig,
) -> None:
    script = FakeScript(tokens=[20] * 50, hang_after=6, pause_after=1)
    async with start_rig(script) as rig:
        async with asyncio.timeout(50):
            await rig.service.drain(100.0, asyncio.Event())
    async with start_rig(script) as rig:
        call, hurry = rig.call(), asyncio.Event()
        await call.read()
        draining = asyncio.create_task(rig.service.drain(100.0, hurry))
        await asyncio.sleep(0)
        go_on(rig.log.path)
        num_tokens = 0
        while num_tokens < 6:
            num_tokens += len((await call.read()).tokens.token_ids)
        assert not draining.done()
        hurry.set()
        async with asyncio.timeout(50):
            await draining
            with pytest.raises(grpc.RpcError) as ended:
                while await call.read() is not grpc.aio.EOF:
                    pass
        assert from_rpc_error(ended.value).reason == "SHUTTING_DOWN"
