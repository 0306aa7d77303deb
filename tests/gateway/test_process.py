"""The gateway as a process: it starts, it refuses taken ports, and it stops in time."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

import controlplane.gateway.main
from chorale import Accepted, AsyncClient, UnavailableError
from controlplane.cli.app import app
from controlplane.cli.supervisor.ports import free_port
from controlplane.gateway.main import serve
from controlplane.gateway.options import GatewayOptions
from tests.helpers.fake_fleet import FakeFleet, running_gateway
from tests.helpers.waiting import eventually

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from controlplane.gateway.main import run
from controlplane.gateway.options import GatewayOptions
run(GatewayOptions(control_plane=sys.argv[1], grpc_port=0, http_port=0, drain_s=float(sys.argv[2]),
                   ready=lambda g, h: print(g, h, flush=True)))
"""


async def start(
    control_plane: str, drain_s: float = 2.0
) -> tuple[asyncio.subprocess.Process, int, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        control_plane,
        str(drain_s),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    grpc_port, http_port = (await asyncio.wait_for(process.stdout.readline(), 60)).split()
    return process, int(grpc_port), int(http_port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_it_soon_with_streams_open(
    fleet: FakeFleet, number: signal.Signals
) -> None:
    assert fleet.server is not None
    plane = fleet.planes[0]
    plane.delay_s = 0.02
    began = time.monotonic()
    process, grpc_port, http_port = await start(fleet.server.address)
    allowed_s = 3 + 5 * (time.monotonic() - began)  # 3, and more where all takes its time
    body = {"model": "pirate", "prompt": "x", "stream": True, "max_tokens": 100_000}
    async with (
        AsyncClient(f"127.0.0.1:{grpc_port}") as client,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=60) as http,
        client.generate("x", max_tokens=100_000) as generation,
        http.stream("POST", "/v1/completions", json=body) as response,
    ):
        assert isinstance(await anext(generation), Accepted)
        lines = aiter(response.aiter_lines())
        assert (await anext(lines)).startswith("data: ")
        began = time.monotonic()
        process.send_signal(number)
        with pytest.raises(UnavailableError) as seen:
            async for _ in generation:
                pass
        assert seen.value.reason == "GATEWAY_STOPPING"
        last = [line async for line in lines if line][-1]
        assert "is stopping" in last
        _, errors = await process.communicate()
        assert time.monotonic() - began < allowed_s
    assert process.returncode == 0 and errors == b""
    await eventually(lambda: not plane.running)


async def test_running_requests_finish_within_the_drain(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GatewayOptions, "accepting_s", 0.1)
    fleet.planes[0].delay_s = 0.02
    async with (
        running_gateway(fleet, drain_s=600.0) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        generation = client.generate("x", max_tokens=20)
        await anext(generation)
        gateway.stop.set()
        texts = [event.text async for event in generation]
        assert len(texts) == 21
        async with asyncio.timeout(60):  # the drain ends with the last request
            await gateway.task


async def test_it_says_first_that_it_stops(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes what still comes, as what is in front of it sees that only after a moment."""
    monkeypatch.setattr(GatewayOptions, "accepting_s", 600.0)
    async with (
        running_gateway(fleet, drain_s=1200.0) as gateway,
        AsyncClient(gateway.address) as client,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
        grpc.aio.insecure_channel(gateway.address) as channel,
    ):
        gateway.stop.set()
        health = health_pb2_grpc.HealthStub(channel)

        async def refusal() -> httpx.Response | None:
            answer = await http.get("/health")
            return None if answer.status_code == 200 else answer

        answer = await eventually(refusal)
        checked = await health.Check(health_pb2.HealthCheckRequest())
        assert (await client.complete("x", max_tokens=1)).finish_reason == "length"
        assert answer.json()["error"]["code"] == "gateway_stopping"
        assert checked.status == health_pb2.HealthCheckResponse.NOT_SERVING
        gateway.hurry.set()
        async with asyncio.timeout(60):
            await gateway.task


async def test_a_second_signal_ends_what_runs(fleet: FakeFleet) -> None:
    assert fleet.server is not None
    fleet.planes[0].delay_s = 0.02
    process, grpc_port, _ = await start(fleet.server.address, drain_s=600.0)
    async with (
        AsyncClient(f"127.0.0.1:{grpc_port}") as client,
        client.generate("x", max_tokens=100_000) as generation,
    ):
        await anext(generation)
        process.send_signal(signal.SIGTERM)

        async def ended() -> None:
            async for _ in generation:
                pass

        running = asyncio.create_task(ended())
        await asyncio.wait((running,), timeout=6.0)  # it takes new requests for 5 s
        assert process.returncode is None and not running.done()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 60)
        with pytest.raises(UnavailableError) as seen:
            await running
        assert seen.value.reason == "GATEWAY_STOPPING"
    assert process.returncode == 0


async def test_cancelling_serve_stops_it(fleet: FakeFleet) -> None:
    async with running_gateway(fleet, grpc_port=free_port("127.0.0.1")) as gateway:
        gateway.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gateway.task
        port = int(gateway.address.rpartition(":")[2])
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize("taken", ["grpc_port", "http_port"])
async def test_taken_port_is_a_clear_error(taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        ports = {"grpc_port": 0, "http_port": 0} | {taken: port}
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            await serve(GatewayOptions(**ports))


@asynccontextmanager
async def command(fleet: FakeFleet, **environment: str) -> AsyncIterator[httpx.AsyncClient]:
    """`chorale gateway` before `fleet`."""
    assert fleet.server is not None
    ports = ["--grpc-port=0", "--http-port=0", f"--control-plane={fleet.server.address}"]
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "controlplane.cli.main", "gateway", *ports],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        url = "http://" + line.split("http=")[1].strip()
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            yield http
    finally:
        process.terminate()
        await process.communicate()


async def test_http_timeout_is_an_option_of_the_command(fleet: FakeFleet) -> None:
    fleet.planes[0].delay_s = 60.0
    async with command(fleet, CHORALE_HTTP_TIMEOUT="0.3") as http:
        body = {"model": "pirate", "prompt": "x", "max_tokens": 100}
        response = await http.post("/v1/completions", json=body)
    assert response.status_code == 504


async def test_http_registry_is_an_option_of_the_command(fleet: FakeFleet) -> None:
    async with command(fleet, CHORALE_HTTP_REGISTRY="0") as http:
        response = await http.post("/v1/unload_lora_adapter", json={"lora_name": "pirate"})
    assert response.status_code == 404 and "pirate" in fleet.adapters


async def test_the_drain_is_an_option_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GatewayOptions] = []
    monkeypatch.setattr(controlplane.gateway.main, "run", seen.append)
    for given in ({}, {"CHORALE_DRAIN_TIMEOUT": "30"}):
        assert CliRunner().invoke(app, ["gateway"], env=given).exit_code == 0
    assert [options.drain_s for options in seen] == [2.0, 30.0]
    assert [options.accepting_s for options in seen] == [0.2, 3.0]


async def test_allowed_hosts_are_an_option_of_the_command(fleet: FakeFleet) -> None:
    async with command(fleet, CHORALE_ALLOW_HOST="a.example *.b.example") as http:
        statuses = [
            (await http.get("/v1/models", headers={"host": host})).status_code
            for host in ("a.example", "x.b.example", "c.example")
        ]
    assert statuses == [200, 200, 421]


async def test_serves_before_its_control_plane_is_there() -> None:
    process, grpc_port, http_port = await start("127.0.0.1:1")
    try:
        async with (
            AsyncClient(f"127.0.0.1:{grpc_port}") as client,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=60) as http,
        ):
            with pytest.raises(UnavailableError):
                await client.complete("x")
            assert (await http.get("/health")).status_code == 503
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "reached_at"),
    [("::1", ["[::1]"]), ("[::1]", ["[::1]"]), ("::", ["[::1]", "127.0.0.1"])],
)
async def test_listens_on_ipv6(fleet: FakeFleet, host: str, reached_at: list[str]) -> None:
    async with running_gateway(fleet, host=host) as gateway:
        for address in reached_at:
            async with AsyncClient(f"{address}:{gateway.address.rpartition(':')[2]}") as client:
                assert (await client.complete("x", max_tokens=3)).finish_reason
            port = gateway.http_url.rpartition(":")[2]
            async with httpx.AsyncClient(base_url=f"http://{address}:{port}", timeout=60) as http:
                assert (await http.get("/v1/models")).status_code == 200
