from __future__ import annotations

import asyncio
import signal
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chorale.status import from_rpc_error
from chorale.v1 import inference_pb2, inference_pb2_grpc
from dataplane.errors import UnsupportedModelError
from dataplane.main import main, run
from dataplane.rpc.lifecycle import endpoint_of
from tests.helpers.data_plane import data_plane, generated
from tests.helpers.fake_control_plane import (
    TOKEN,
    FakeControlPlane,
    eventually,
    make_ticket,
    serving,
)
from tests.helpers.fake_engine import FakeScript, environment, go_on
from tests.helpers.prometheus import Metrics
from tests.helpers.rig import EngineLog

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ADDRESS = "127.0.0.1:9"  # discard: nobody listens


async def test_serves_as_a_member_until_sigterm(model: str, log: Path) -> None:
    plane = FakeControlPlane()
    script = FakeScript(tokens=[20, 21])
    async with (
        serving(plane) as server,
        data_plane(
            script,
            log,
            model,
            f"--control-plane={server.address}",
            "--data-plane-id=dp-1",
            "--max-running=3",
            "--max-adapter-bytes=5000000000",
            "--ttft-slo=600",
            "--metrics-port=0",
        ) as running,
    ):
        address = await running.ready()
        metrics = (await running.logged("metrics on ")).rpartition(" ")[2]
        assert [join.endpoint for join in plane.joins] == [address]
        assert plane.joins[0].base_model.name == "base"
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "chorale.v1.InferenceService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            events = await generated(channel)
            assert events[-1].finished.usage.num_completion_tokens == 2
        async with httpx.AsyncClient() as http:
            seen = Metrics((await http.get(f"http://{metrics}/metrics")).text)
        assert seen("chorale_data_plane_requests_total", outcome="ok", reason="") == 1
        assert seen("chorale_data_plane_pool_pages", data_plane="dp-1") == 100
        assert seen("process_open_fds") > 0
        status, out, err = await running.stop()
        assert (status, out) == (0, ""), err
        assert "Traceback" not in err
        await eventually(lambda: len(plane.leaves) == 1)
    assert '"max_running":3' in log.read_text() and '"model_name":"base"' in log.read_text()
    assert '"max_adapter_bytes":5000000000' in log.read_text()
    (submit,) = EngineLog(log).of("Submit")
    assert submit["first_token_by_s"] == submit["arrival_s"] + 600


async def test_tickets_go_by_the_clock_of_the_control_plane(model: str, log: Path) -> None:
    plane = FakeControlPlane()
    plane.ahead_s = -3600.0
    script = FakeScript(tokens=[20])
    async with (
        serving(plane) as server,
        data_plane(
            script, log, model, f"--control-plane={server.address}", "--data-plane-id=dp-1"
        ) as running,
        grpc.aio.insecure_channel(await running.ready()) as channel,
    ):
        assert await generated(channel, expires_in_s=-3000.0)
        plane.ahead_s = 3600.0  # set, while it runs: the next heartbeat tells

        async def refuses() -> str:
            try:
                await generated(channel, expires_in_s=3000.0)
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error).reason
            return ""

        assert await eventually(refuses) == "TICKET_EXPIRED"
        assert await generated(channel, expires_in_s=4200.0)


async def test_the_fleet_token_comes_from_a_file(model: str, log: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    async with serving(FakeControlPlane()) as server:
        arguments = (model, f"--control-plane={server.address}")
        file = f"--fleet-token-file={tmp_path / 'token'}"
        async with data_plane(FakeScript(), log, *arguments, file, token="") as running:
            assert await running.ready()
            assert (await running.stop())[0] == 0


async def test_waits_for_the_control_plane_and_stops_meanwhile(model: str, log: Path) -> None:
    async with data_plane(FakeScript(), log, model, f"--control-plane={ADDRESS}") as running:
        await eventually(lambda: log.exists() and '"Start"' in log.read_text())
        await asyncio.sleep(0.2)
        status, out, err = await running.stop()
        assert (status, out) == (0, ""), err
        assert "Traceback" not in err


async def test_goes_on_serving_while_the_control_plane_is_down(model: str, log: Path) -> None:
    plane = FakeControlPlane()
    script = FakeScript(tokens=[20, 21])
    async with serving(plane) as server:
        arguments = (model, f"--control-plane={server.address}", "--data-plane-id=dp-1")
        context = data_plane(script, log, *arguments)
        running = await context.__aenter__()
        address = await running.ready()
    try:
        await asyncio.sleep(0.2)
        async with grpc.aio.insecure_channel(address) as channel:
            events = await generated(channel)
            assert events[-1].WhichOneof("event") == "finished"
        assert (await running.stop())[0] == 0
    finally:
        await context.__aexit__(None, None, None)


async def test_start_failures_are_one_line_and_status_2(
    model: str, log: Path, tmp_path: Path
) -> None:
    failed = FakeScript(
        start_failed={"reason": "POOL_TOO_SMALL", "message": "pool\nis small", "metadata": {}}
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        plane = FakeControlPlane()
        async with serving(plane) as server:
            to = f"--control-plane={server.address}"
            cases = [
                (failed, (model, to), TOKEN, "error: POOL_TOO_SMALL: pool is small"),
                (FakeScript(), (f"--model={tmp_path}/none", to), TOKEN, "error: MODEL_NOT_FOUND: "),
                (FakeScript(), (model, to, f"--port={port}"), TOKEN, f"127.0.0.1:{port}"),
                (FakeScript(), (model, to), "wrong", "error: FLEET_TOKEN_WRONG: "),
                (FakeScript(), (model, to), "", "error: FLEET_TOKEN_MISSING: "),
                (
                    FakeScript(),
                    (model, to, f"--fleet-token-file={tmp_path}/none"),
                    "",
                    f"error: FLEET_TOKEN_MISSING: --fleet-token-file {tmp_path}/none: No such file",
                ),
            ]
            for script, arguments, token, expected in cases:
                async with data_plane(script, log, *arguments, token=token) as running:
                    status, out, err = await running.end()
                assert (status, out) == (2, ""), err
                assert expected in err.splitlines()[-1] and "Traceback" not in err


def test_its_help_names_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "Usage: chorale data-plane [OPTIONS]" in capsys.readouterr().out


def test_what_it_says_of_a_model_steers_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def serve(*_: object) -> bool:
        raise UnsupportedModelError("MODEL_UNSUPPORTED", "format is \x1b[31mred\x07\nor so \u202e")

    monkeypatch.setattr("dataplane.rpc.lifecycle.serve", serve)
    options: Any = None  # for `serve` alone
    assert run(options) == 2
    assert capsys.readouterr().err == "error: MODEL_UNSUPPORTED: format is [31mred or so \n"


def test_the_endpoint_that_is_announced() -> None:
    assert endpoint_of("", "127.0.0.1", 5) == "127.0.0.1:5"
    assert endpoint_of("", "0.0.0.0", 5) == f"{socket.gethostname()}:5"
    assert endpoint_of("dp.example", "0.0.0.0", 5) == "dp.example:5"
    assert endpoint_of("dp.example:80", "0.0.0.0", 5) == "dp.example:80"
    assert endpoint_of("[fd00::1]", "::", 5) == "[fd00::1]:5"
    assert endpoint_of("fd00::1", "::", 5) == "[fd00::1]:5"
    assert endpoint_of("", "::1", 5) == "[::1]:5"
    assert endpoint_of("[fd00::1]:80", "::", 5) == "[fd00::1]:80"


@pytest.mark.skipif(
    tuple(map(int, metadata.version("transformers").split(".")[:2])) < (5, 23),
    reason="older transformers import it for a tokenizer",
)
async def test_the_frontend_imports_no_torch(model: str, tmp_path: Path) -> None:
    program = (
        "import sys, dataplane.main, dataplane.rpc.lifecycle\n"
        "from pathlib import Path\n"
        "from dataplane.text.tokenizer import load_tokenizer\n"
        "early = {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "tokenizer = load_tokenizer(Path(sys.argv[1]))\n"
        "tokenizer.encode_chat([{'role': 'user', 'content': 'x'}], max_tokens=99)\n"
        "print(early, 'torch' in sys.modules)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        model.removeprefix("--model="),
        stdout=asyncio.subprocess.PIPE,
        env=environment(FakeScript(), tmp_path / "log"),
    )
    out, _ = await process.communicate()
    assert out.decode() == "set() False\n"


@pytest.mark.parametrize("hurried", [False, True])
async def test_open_requests_have_the_time_to_drain(model: str, log: Path, hurried: bool) -> None:
    plane = FakeControlPlane()
    script = FakeScript(tokens=[20] * 62, pause_after=30)
    async with (
        serving(plane) as server,
        data_plane(
            script,
            log,
            model,
            f"--control-plane={server.address}",
            "--data-plane-id=dp-1",
            "--drain-timeout=60",
        ) as running,
        grpc.aio.insecure_channel(await running.ready()) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(
            inference_pb2.GenerateRequest(prompt="hello", ticket=make_ticket()), timeout=100
        )
        await call.read()
        running.process.send_signal(signal.SIGTERM)
        # It leaves at once: nothing more is placed here.
        await eventually(lambda: len(plane.leaves) == 1)
        num_heartbeats = len(plane.heartbeats)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            again = inference_pb2.GenerateRequest(prompt="hello", ticket=make_ticket())
            async for _ in stub.Generate(again):
                pass
        assert from_rpc_error(refused.value).reason == "SHUTTING_DOWN"
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        if hurried:
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert from_rpc_error(ended.value).reason == "SHUTTING_DOWN"
        else:
            go_on(log)
            last = None
            while (event := await call.read()) is not grpc.aio.EOF:
                last = event
            assert last is not None and last.finished.usage.num_completion_tokens == 62
        assert len(plane.heartbeats) == num_heartbeats
        status, _, err = await running.end()
        assert status == 0 and "Traceback" not in err
