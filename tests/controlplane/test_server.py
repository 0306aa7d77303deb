"""The process around the services: health, reflection, outages, replicas, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admission_pb2, fleet_pb2
from controlplane.errors import OptionError, StoreUnavailableError
from controlplane.options import ControlPlaneOptions
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import TOKEN, ControlPlane, failure, running
from tests.helpers.waiting import eventually

_MAIN = """
import os, sys
from controlplane.main import run
from controlplane.options import ControlPlaneOptions
if "torch" in sys.modules: raise SystemExit("torch was imported")
run(
    ControlPlaneOptions(
        redis_url=sys.argv[1], fleet_token="t", redis_start_s=float(sys.argv[2]),
        redis_timeout_s=60.0,
    ),
    ready=lambda host, port: print(host, port, flush=True),
)
"""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def becomes(channel: grpc.aio.Channel, status: int, service: str = "") -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)

    async def is_so() -> bool:
        response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return response.status == status

    return await eventually(is_so)


async def test_health_and_reflection(plane: ControlPlane) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(plane.channel)
    call = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    response = await anext(aiter(call))
    names = {service.name for service in response.list_services_response.service}
    ours = {
        "chorale.v1.AdapterRegistryService",
        "chorale.v1.AdmissionService",
        "chorale.v1.FleetService",
        "chorale.v1.TenantService",
    }
    assert ours | {"grpc.health.v1.Health"} <= names
    for name in ("", *ours):
        assert await becomes(plane.channel, SERVING, name)


async def test_an_outage_of_redis_is_typed_and_passes(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "data") as redis:
        options: dict[str, Any] = {"adapter_roots": [tmp_path]}
        async with running(redis.url, **options) as plane:
            await plane.join(max_running=4)
            await plane.register("voice", make_adapter_dir(tmp_path / "1"))
            assert await becomes(plane.channel, SERVING)
            assert redis.pid is not None
            listing = fleet_pb2.ListDataPlanesRequest()  # many at once: many open connections
            await asyncio.gather(*(plane.fleet.ListDataPlanes(listing) for _ in range(20)))
            os.kill(redis.pid, signal.SIGKILL)
            await asyncio.to_thread(_wait_dead, redis)
            calls = (
                plane.admission.Admit(admission_pb2.AdmitRequest(model="voice")),
                plane.registry.GetAdapter(registry_pb.GetAdapterRequest(name="voice")),
                plane.register("voice", tmp_path / "1"),
                plane.fleet.ListDataPlanes(fleet_pb2.ListDataPlanesRequest()),
                plane.beat(),
                plane.join("dp-1"),
            )
            for call in calls:
                error = await failure(call)
                assert (error.code.name, error.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
                assert error.retry_after_s
            assert await becomes(plane.channel, NOT_SERVING)
            await asyncio.to_thread(redis.start)
            assert await becomes(plane.channel, SERVING)
            await asyncio.gather(*(plane.fleet.ListDataPlanes(listing) for _ in range(20)))
            # A second's worth of writes may be lost to a dead machine, none to a dead process.
            response = await plane.admission.Admit(admission_pb2.AdmitRequest(model="voice"))
            assert response.model == "voice"


async def test_a_hanging_redis_is_typed(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "data") as redis:
        async with running(redis.url, redis_timeout_s=1.0) as plane:

            async def joined() -> bool:
                return await _answered(plane.join())

            async def admitted() -> bool:
                return await _answered(plane.admission.Admit(admission_pb2.AdmitRequest()))

            await eventually(joined)
            assert redis.pid is not None
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                error = await failure(plane.admission.Admit(admission_pb2.AdmitRequest()))
                assert error.reason == "STORE_UNAVAILABLE"
            finally:
                os.kill(redis.pid, signal.SIGCONT)
            assert await becomes(plane.channel, SERVING)
            await eventually(admitted)


async def _answered(call: Awaitable[Any]) -> bool:
    """Whether in Redis' one second, which a machine may pause for, too."""
    try:
        return bool(await call)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False


async def test_everything_survives_restarts(tmp_path: Path) -> None:
    source = make_adapter_dir(tmp_path / "1")
    for attempt in range(2):
        with EmbeddedRedis(tmp_path / "data") as redis:
            async with running(redis.url, adapter_roots=[tmp_path]) as plane:
                if attempt == 0:
                    joined = await plane.join()
                    first = await plane.register("voice", source, labels={"a": "b"})
                    alias = registry_pb.Alias(name="prod", adapter="voice", version=1)
                    await plane.registry.SetAlias(registry_pb.SetAliasRequest(alias=alias))
                    continue
                request = registry_pb.GetAdapterRequest(name="prod")
                adapter = (await plane.registry.GetAdapter(request)).adapter
                assert adapter.versions == first.adapter.versions
                assert [alias.name for alias in adapter.aliases] == ["prod"]
                # Data planes keep serving tickets of before: the keys are the same.
                assert (await plane.join(incarnation=2)).ticket_keys == joined.ticket_keys
                assert not (await plane.register("voice", source)).created


async def test_replicas_race_to_register(redis_url: str, tmp_path: Path) -> None:
    """Every content becomes one version, whoever is first; numbers have no gap and no double."""
    sources = [make_adapter_dir(tmp_path / str(seed), seed=seed) for seed in range(5)]
    async with (
        running(redis_url, adapter_roots=[tmp_path]) as one,
        running(redis_url, adapter_roots=[tmp_path]) as two,
    ):
        await one.join()
        responses = await asyncio.gather(
            *((one, two)[i % 2].register("voice", sources[i // 4]) for i in range(20))
        )
        created = Counter(r.version.version for r in responses if r.created)
        assert created == Counter([1, 2, 3, 4, 5])
        by_digest = {(r.version.digest, r.version.version) for r in responses}
        assert len(by_digest) == 5
        request = registry_pb.GetAdapterRequest(name="voice")
        seen = [await replica.registry.GetAdapter(request) for replica in (one, two)]
        assert seen[0] == seen[1]
        assert [v.version for v in seen[0].adapter.versions] == [5, 4, 3, 2, 1]


async def _start(*args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _MAIN,
        *args,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )


async def _handles(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Waits until the process has a handler of its own for the signal: its imports take a while."""
    status = Path(f"/proc/{process.pid}/status")
    async with asyncio.timeout(60):
        while True:
            caught = next(x for x in status.read_text().splitlines() if x.startswith("SigCgt"))
            if int(caught.split()[1], 16) >> (number - 1) & 1:
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_the_process_cleanly(redis_url: str, number: signal.Signals) -> None:
    process = await _start(redis_url, "60")
    assert process.stdout is not None
    host, port = (await process.stdout.readline()).decode().split()
    async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
        assert await becomes(channel, SERVING)
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out, err) == (0, b"", b"")


async def test_it_waits_for_redis_and_gives_up(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        async with running(f"unix://{tmp_path}/nothing.sock", redis_start_s=0.2):
            pytest.fail("served without Redis")
    process = await _start(f"unix://{tmp_path}/nothing.sock", "30")
    await _handles(process, signal.SIGTERM)
    await asyncio.sleep(0.5)
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (0, b"")


async def test_a_taken_port(plane: ControlPlane, redis_url: str) -> None:
    port = int(plane.address.rpartition(":")[2])
    with pytest.raises(OSError, match=str(port)):
        async with running(redis_url, port=port):
            pytest.fail("served on a taken port")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fleet_token", ""),
        ("fleet_token", "a b"),
        ("port", 65536),
        ("lease_s", 0.0),
        ("lease_s", float("nan")),
        ("max_queue_factor", -1.0),
    ],
)
def test_options(option: str, value: Any) -> None:
    options: dict[str, Any] = {"redis_url": "redis://", "fleet_token": TOKEN, option: value}
    with pytest.raises(OptionError) as caught:
        ControlPlaneOptions(**options)
    assert caught.value.metadata == {"option": option}


async def test_a_malformed_redis_url() -> None:
    with pytest.raises(OptionError) as caught:
        async with running("http://somewhere"):
            pytest.fail("served without Redis")
    assert caught.value.metadata == {"option": "redis_url"}


def _wait_dead(redis: EmbeddedRedis) -> None:
    while redis.poll() is None:
        time.sleep(0.005)
