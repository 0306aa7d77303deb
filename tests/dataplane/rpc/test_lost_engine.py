"""A data plane whose engine dies, hangs or talks nonsense."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chorale.errors import ChoraleError
from chorale.status import from_rpc_error
from chorale.v1 import inference_pb2, inference_pb2_grpc
from tests.helpers.data_plane import data_plane, generated
from tests.helpers.fake_control_plane import (
    FakeControlPlane,
    eventually,
    make_ticket,
    serving,
)
from tests.helpers.fake_engine import FakeScript, environment
from tests.helpers.rig import EngineLog

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("mishap", ["crash_after", "freeze_after", "garbage_after"])
async def test_a_lost_engine_is_replaced(model: str, log: Path, mishap: str) -> None:
    plane = FakeControlPlane()
    script = FakeScript(tokens=[20, 21, 22], mishap_lives=1)
    setattr(script, mishap, 1)
    async with (
        serving(plane) as server,
        data_plane(
            script,
            log,
            model,
            f"--control-plane={server.address}",
            "--data-plane-id=dp-1",
            *(["--engine-timeout=2"] if mishap == "freeze_after" else []),
        ) as running,
    ):
        address = await running.ready()
        async with grpc.aio.insecure_channel(address) as channel:
            statuses = await _watch_health(channel)
            failure = await _failed_generation(channel)
            assert failure.reason == "ENGINE_LOST" and failure.retry_after_s == 1.0
            await eventually(lambda: len(plane.joins) == 2)
            first, second = plane.joins
            assert [leave.incarnation for leave in plane.leaves] == [first.incarnation]
            assert second.incarnation > first.incarnation
            second.incarnation = first.incarnation
            assert second == first
            await eventually(lambda: statuses.seen[-1] == SERVING)
            assert statuses.seen == [SERVING, NOT_SERVING, SERVING]
            statuses.task.cancel()
            told = EngineLog(log).of("Vocabulary")
            assert len(told) == 2 and told[0] == told[1], "each is taught before it serves"
            events = await generated(channel)
            assert events[-1].finished.usage.num_completion_tokens == 3
        status, out, err = await running.stop()
        assert (status, out) == (0, ""), err
        assert "Traceback" not in err
    assert log.read_text().count('"type":"Start"') == 2


async def test_requests_are_refused_while_there_is_no_engine(model: str, log: Path) -> None:
    plane = FakeControlPlane()
    script = FakeScript(crash_after=0, mishap_lives=1)
    async with (
        serving(plane) as server,
        data_plane(
            script, log, model, f"--control-plane={server.address}", "--data-plane-id=dp-1"
        ) as running,
    ):
        async with grpc.aio.insecure_channel(await running.ready()) as channel:
            script.ready_delay_s = 600.0  # of the next one
            environment(script, log)
            await _failed_generation(channel)
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            request = inference_pb2.GenerateRequest(prompt="hello", ticket=make_ticket())
            call = stub.Generate(request)
            with pytest.raises(grpc.RpcError) as raised:
                await call.read()
            failure = from_rpc_error(raised.value)
            assert (failure.code, failure.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "ENGINE_LOST",
            ), "refused before it is accepted"
            await eventually(lambda: len(EngineLog(log).of("Start")) == 2)
        # Told to stop while an engine is starting, it leaves nothing behind.
        status, _, err = await running.stop()
        assert status == 0 and "Traceback" not in err


@pytest.mark.parametrize("changed", [False, True])
async def test_an_engine_of_no_use_ends_it_with_status_1(
    model: str, log: Path, changed: bool
) -> None:
    plane = FakeControlPlane()
    script = FakeScript(crash_after=0)
    async with (
        serving(plane) as server,
        data_plane(
            script, log, model, f"--control-plane={server.address}", "--data-plane-id=dp-1"
        ) as running,
    ):
        async with grpc.aio.insecure_channel(await running.ready()) as channel:
            if changed:
                script.ready = {"fingerprint": "0" * 64}
            else:
                script.exit_before_ready = 9
            environment(script, log)
            await _failed_generation(channel)
        status, _, err = await running.end()
        assert status == 1 and "ENGINE_LOST" in err
        assert ("have changed" if changed else "status 9") in err
        await eventually(lambda: len(plane.leaves) == 1)


async def test_an_engine_that_is_lost_while_it_starts_is_status_1(model: str, log: Path) -> None:
    """Not 2, which tells a supervisor that another try cannot help."""
    async with (
        serving(FakeControlPlane()) as server,
        data_plane(
            FakeScript(exit_before_ready=9), log, model, f"--control-plane={server.address}"
        ) as running,
    ):
        status, _, err = await running.end()
    assert status == 1 and "error: ENGINE_LOST: " in err.splitlines()[-1]


@dataclass
class _Statuses:
    seen: list[int]
    task: asyncio.Task[None]


async def _watch_health(channel: grpc.aio.Channel) -> _Statuses:
    """Collects every health of the server from now on."""
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    seen: list[int] = []

    async def collect() -> None:
        async for answer in call:
            seen.append(answer.status)

    statuses = _Statuses(seen, asyncio.create_task(collect()))
    await eventually(lambda: seen)
    return statuses


async def _failed_generation(channel: grpc.aio.Channel) -> ChoraleError:
    with pytest.raises(grpc.RpcError) as raised:
        await generated(channel)
    return from_rpc_error(raised.value)
