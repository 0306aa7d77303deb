"""A gateway whose control plane and data planes speak mutual TLS, or do not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import trustme
from typer.testing import CliRunner

from chorale import AsyncClient, watched
from chorale.errors import InvalidArgumentError, UnavailableError
from chorale.fleet_tls import FleetTls
from chorale.fleet_tls_files import VARIABLES, FleetTlsFiles
from controlplane.cli.app import app
from tests.helpers.fake_fleet import running_fleet, running_gateway
from tests.helpers.fleet_certificates import files_in, write_files
from tests.helpers.waiting import eventually

AUTHORITY, OTHER = trustme.CA(), trustme.CA()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "POLL_S", 0.01)


async def test_generations_and_calls(tmp_path: Path) -> None:
    files = write_files(tmp_path, AUTHORITY)
    async with (
        running_fleet(2, tls=FleetTls(files)) as fleet,
        running_gateway(fleet, fleet_tls=files) as gateway,
        AsyncClient(gateway.address) as client,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        assert (await client.complete("x", model="pirate", max_tokens=3)).text
        assert len(await client.data_planes()) == 2
        assert (await http.get("/v1/models")).status_code == 200
        told = await gateway.metrics()
        assert told("chorale_gateway_stale_files", file="fleet_tls") == 0


async def test_one_goes_on_over_new_certificates(tmp_path: Path) -> None:
    """The fleet changes its authority while a stream runs, and neither it nor others feel that."""
    servers = FleetTls(write_files(tmp_path / "servers", AUTHORITY, AUTHORITY, OTHER))
    files = write_files(tmp_path / "gateway", AUTHORITY, AUTHORITY, OTHER)
    held = asyncio.Event()
    async with (
        running_fleet(1, tls=servers) as fleet,
        running_gateway(fleet, fleet_tls=files) as gateway,
        AsyncClient(gateway.address) as client,
    ):

        async def hold(_: object, num_tokens: int) -> None:
            if num_tokens == 1:
                await held.wait()

        fleet.planes[0].before_token = hold
        running = client.generate("x", model="pirate", max_tokens=3)
        await anext(aiter(running))
        for directory in ("servers", "gateway"):
            write_files(tmp_path / directory, OTHER)
        servers.files.look()
        fleet.planes[0].before_token = None

        async def answered() -> bool:
            try:
                return bool((await client.complete("x", model="pirate", max_tokens=1)).text)
            except UnavailableError:
                return False

        await eventually(answered)
        held.set()
        assert [event async for event in running]


@pytest.mark.parametrize("case", ["plaintext gateway", "plaintext fleet", "other authority"])
async def test_mixtures_tell_the_way_out(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    files = write_files(tmp_path / "fleet", AUTHORITY)
    tls = None if case == "plaintext fleet" else FleetTls(files)
    given: FleetTlsFiles | None = files
    if case == "plaintext gateway":
        given = None
    elif case == "other authority":
        given = write_files(tmp_path / "gateway", OTHER)
    async with (
        running_fleet(1, tls=tls) as fleet,
        running_gateway(fleet, fleet_tls=given) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        with pytest.raises(UnavailableError):
            await client.data_planes()
        assert "the control plane: UNAVAILABLE" in caplog.text
        assert "--fleet-tls-c" in caplog.text


async def test_files_that_do_not_serve(tmp_path: Path) -> None:
    write_files(tmp_path, AUTHORITY, OTHER)
    async with running_fleet(0) as fleet:
        with pytest.raises(InvalidArgumentError, match="vouches for"):
            async with running_gateway(fleet, fleet_tls=files_in(tmp_path)):
                pass


async def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`health` and the like of a control plane, and the addresses that data planes announce."""
    files = write_files(tmp_path / "good", AUTHORITY)
    foreign = write_files(tmp_path / "foreign", OTHER)

    async def run(given: FleetTlsFiles | None, *arguments: str) -> tuple[int, str]:
        names = (given.cert_file, given.key_file, given.ca_file) if given else ("", "", "")
        environment = dict(zip(VARIABLES, names, strict=True))
        result = await asyncio.to_thread(
            CliRunner().invoke, app, [*arguments, "--timeout=20"], env=environment
        )
        return result.exit_code, result.output

    async with running_fleet(1, tls=FleetTls(files)) as fleet:
        assert fleet.server is not None
        address = f"--address=fleet://{fleet.server.address}"
        assert await run(files, "health", address) == (0, "SERVING\n")
        status, said = await run(files, "adapters", "list", address)
        assert status == 0 and "pirate" in said
        for wrong in (None, foreign):
            status, said = await run(wrong, "health", address)
            assert status == 5 and "--fleet-tls-c" in said, said
        half = FleetTlsFiles(files.cert_file, "", files.ca_file)
        status, said = await run(half, "health", address)
        assert status == 2 and "--fleet-tls-key-file is missing" in said, said
    async with running_fleet(0) as fleet:  # without files it is plaintext
        assert fleet.server is not None
        address = f"--address=fleet://{fleet.server.address}"
        assert await run(None, "health", address) == (0, "SERVING\n")
        status, said = await run(files, "health", address)
        assert status == 5 and "speaks plaintext" in said
