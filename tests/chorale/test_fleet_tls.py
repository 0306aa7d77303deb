"""Mutual TLS between the planes: whom servers let in, and what files serve."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chorale import fleet_tls_files
from chorale.channel import CHANNEL_OPTIONS
from chorale.errors import InvalidArgumentError
from chorale.fleet_channel import open_fleet_channel
from chorale.fleet_tls import FLEET_NAME, FleetTls, is_mismatch, way_out
from chorale.server import Server
from chorale.status import from_rpc_error
from chorale.v1 import inference_pb2 as pb
from chorale.v1 import inference_pb2_grpc
from tests.helpers.fleet_certificates import LONG_AGO, files_in, write_files
from tests.helpers.serving import served

ROOT = Path(__file__).parents[2]
AUTHORITY, OTHER = trustme.CA(), trustme.CA()


class Echo(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        return pb.TokenizeResponse()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> Any:
        yield pb.GenerateResponse()
        await self.go_on.wait()
        yield pb.GenerateResponse()


@asynccontextmanager
async def serving(
    tls: FleetTls | None, echo: Echo | None = None, port: int = 0
) -> AsyncIterator[Server]:
    servicer = echo or Echo()
    add: Any = inference_pb2_grpc.add_InferenceServiceServicer_to_server
    async with served(
        "chorale.v1.InferenceService", lambda to: add(servicer, to), port, tls
    ) as server:
        yield server


async def asked(channel: grpc.aio.Channel) -> str:
    """ "ok", or the reason and message of the refusal."""
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    try:
        await stub.Tokenize(pb.TokenizeRequest(), timeout=20)
    except grpc.aio.AioRpcError as failure:
        error = from_rpc_error(failure)
        return f"{error.reason}: {error.message}"
    return "ok"


async def ask(address: str, tls: FleetTls | None) -> str:
    async with open_fleet_channel(address, CHANNEL_OPTIONS, tls) as channel:
        return await asked(channel)


def unchecked(directory: Path, **made: Any) -> FleetTls:
    """By files that FleetTls itself would refuse."""
    good = FleetTls(write_files(directory, AUTHORITY))
    files = write_files(directory, made.pop("authority", AUTHORITY), AUTHORITY, **made)
    cert, key, ca = (
        Path(one).read_bytes() for one in (files.cert_file, files.key_file, files.ca_file)
    )
    made_of: Any = type(good.certificate)
    pair = cast("Any", grpc).ssl_server_certificate_configuration([(key, cert)], ca)
    good.files.value = made_of(pair, grpc.ssl_channel_credentials(ca, key, cert))
    good._given = good.files.value  # pyright: ignore[reportPrivateUsage]
    return good


async def test_members_only(tmp_path: Path) -> None:
    tls = FleetTls(write_files(tmp_path / "good", AUTHORITY))
    foreign = unchecked(tmp_path / "foreign", authority=OTHER)
    expired = unchecked(tmp_path / "expired", not_after=LONG_AGO)
    nameless = unchecked(tmp_path / "nameless", name="web.example.com")
    async with serving(tls) as server:
        assert await ask(server.address, tls) == "ok"
        for wrong in (foreign, expired, None):
            said = await ask(server.address, wrong)
            assert said.startswith("UNTYPED"), said
            assert "--fleet-tls-cert-file" in way_out(said), said
        said = await ask(server.address, nameless)
        assert said.startswith("NOT_OF_THE_FLEET") and FLEET_NAME in said
        anonymous = grpc.ssl_channel_credentials(AUTHORITY.cert_pem.bytes())
        named = [("grpc.ssl_target_name_override", FLEET_NAME)]
        async with grpc.aio.secure_channel(server.address, anonymous, options=named) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)


async def test_servers_that_are_not_the_fleets(tmp_path: Path) -> None:
    tls = FleetTls(write_files(tmp_path / "good", AUTHORITY))
    for server_tls, way in (
        (None, "that side speaks plaintext"),
        (unchecked(tmp_path / "foreign", authority=OTHER), "none of the authorities"),
        (unchecked(tmp_path / "expired", not_after=LONG_AGO), "has expired"),
        (unchecked(tmp_path / "nameless", name="web.example.com"), f"not for {FLEET_NAME}"),
    ):
        async with serving(server_tls) as server:
            said = await ask(server.address, tls)
        assert said.startswith("UNTYPED") and way in way_out(said) and is_mismatch(said), said


async def test_the_authority_is_rotated_under_traffic(tmp_path: Path) -> None:
    """One side at a time, each with what was there before and what comes next."""
    sides = tmp_path / "server", tmp_path / "channel"
    ours, theirs = (FleetTls(write_files(side, AUTHORITY)) for side in sides)
    echo, num_asked, is_over = Echo(), 0, False
    async with (
        serving(ours, echo) as server,
        open_fleet_channel(server.address, CHANNEL_OPTIONS, theirs) as channel,
    ):
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        running = stub.Generate(pb.GenerateRequest())
        assert await running.read() is not cast("Any", grpc.aio).EOF

        async def traffic() -> None:
            nonlocal num_asked
            while not is_over:
                assert await asked(channel) == "ok"
                assert await ask(server.address, theirs) == "ok"  # over a connection of its own
                num_asked += 1

        asking = asyncio.create_task(traffic())
        for authority, *trusted in (
            (AUTHORITY, AUTHORITY, OTHER),
            (OTHER, AUTHORITY, OTHER),
            (OTHER, OTHER),
        ):
            for side, tls in zip(sides, (ours, theirs), strict=True):
                before, certificate = num_asked, tls.certificate
                write_files(side, authority, *trusted)
                await asyncio.to_thread(tls.files.look)
                assert tls.certificate is not certificate
                async with asyncio.timeout(20):
                    while num_asked < before + 2 and not asking.done():
                        await asyncio.sleep(0.005)
        is_over = True
        await asking
        old = FleetTls(write_files(tmp_path / "old", AUTHORITY, AUTHORITY, OTHER))
        assert (await ask(server.address, old)).startswith("UNTYPED")
        echo.go_on.set()
        assert await running.read() is not cast("Any", grpc.aio).EOF, "what runs goes on"
        await running.read()
        retired: set[Any] = cast("Any", channel)._retired
        async with asyncio.timeout(20):
            while retired:
                await asyncio.sleep(0.005)


async def test_a_channel_connects_again_by_its_renewed_certificate(tmp_path: Path) -> None:
    tls = FleetTls(write_files(tmp_path / "channel", AUTHORITY))
    other = FleetTls(write_files(tmp_path / "other", OTHER))
    async with serving(FleetTls(write_files(tmp_path / "server", AUTHORITY))) as before:
        channel = open_fleet_channel(before.address, CHANNEL_OPTIONS, tls)
        assert await asked(channel) == "ok"
    async with channel, serving(other, port=before.port):
        assert (await asked(channel)).startswith("UNTYPED")
        write_files(tmp_path / "channel", OTHER)
        tls.files.look()
        assert await asked(channel) == "ok"


def test_files_that_do_not_serve(tmp_path: Path) -> None:
    good = write_files(tmp_path / "good", AUTHORITY)
    empty = tmp_path / "empty.pem"
    empty.touch()
    for files, said in (
        (write_files(tmp_path / "foreign", OTHER, AUTHORITY), "unable to get local issuer"),
        (write_files(tmp_path / "expired", AUTHORITY, not_after=LONG_AGO), "has expired"),
        (write_files(tmp_path / "nameless", AUTHORITY, name="a.example"), f"DNS:{FLEET_NAME}"),
        (type(good)(good.cert_file, good.key_file, str(empty)), "empty.pem holds no certificates"),
        (type(good)(good.cert_file, good.cert_file, good.ca_file), "its private key"),
        (type(good)(good.cert_file, "/none.pem", good.ca_file), "/none.pem: No such file"),
    ):
        with pytest.raises(InvalidArgumentError) as raised:
            FleetTls(files)
        assert raised.value.reason == "FLEET_TLS_INVALID"
        assert said in raised.value.message, raised.value.message


def test_a_broken_renewal_leaves_what_was_there(tmp_path: Path) -> None:
    tls = FleetTls(write_files(tmp_path, AUTHORITY))
    before = tls.certificate
    write_files(tmp_path, AUTHORITY, not_after=LONG_AGO)
    tls.files.look()
    assert tls.certificate is before and tls.files.is_stale


def test_half_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in fleet_tls_files.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert fleet_tls_files.from_environment() is None
    monkeypatch.setenv("CHORALE_FLEET_TLS_KEY_FILE", "/key.pem")
    monkeypatch.setenv("CHORALE_FLEET_TLS_CA_FILE", "")  # as compose gives what is not set
    with pytest.raises(ValueError, match="cert-file and --fleet-tls-ca-file is missing"):
        fleet_tls_files.from_environment()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_the_commands_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs/operations.md").read_text().partition("### Between the planes")[2]
    block = text.partition("\n\n    openssl ")[2].partition("\n\n")[0]
    script = "set -e\nopenssl " + block
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    FleetTls(files_in(tmp_path))
