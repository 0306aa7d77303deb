"""A gateway that speaks TLS, over gRPC and HTTP, with a certificate that is renewed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio
import trustme
from typer.testing import CliRunner

from chorale import AsyncClient, Client, watched
from chorale import server as grpc_server
from chorale.errors import UnavailableError
from controlplane.cli.app import app
from controlplane.cli.supervisor.readiness import wait_until_serving
from controlplane.errors import OptionError
from controlplane.gateway.http import server as http_server
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_gateway
from tests.helpers.waiting import eventually

AUTHORITY = trustme.CA()
OTHER = trustme.CA()


def write_certificate(directory: Path, authority: trustme.CA = AUTHORITY) -> dict[str, Path]:
    made = authority.issue_cert("localhost", "127.0.0.1")
    files = {"tls_cert_file": directory / "cert.pem", "tls_key_file": directory / "key.pem"}
    made.cert_chain_pems[0].write_to_path(files["tls_cert_file"])
    made.private_key_pem.write_to_path(files["tls_key_file"])
    return files


def trusting(authority: trustme.CA) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes())


def context(authority: trustme.CA) -> ssl.SSLContext:
    made = ssl.create_default_context()
    authority.configure_trust(made)
    return made


@pytest_asyncio.fixture
async def secure(
    fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningGateway]:
    monkeypatch.setattr(watched, "POLL_S", 0.01)
    async with running_gateway(fleet, **write_certificate(tmp_path)) as gateway:
        yield gateway


async def test_both_clients(secure: RunningGateway) -> None:
    async with AsyncClient(secure.address, credentials=trusting(AUTHORITY)) as client:
        assert (await client.complete("x", model="pirate", max_tokens=3)).text

    def blocking() -> str:
        with Client(f"grpcs://{secure.address}", credentials=trusting(AUTHORITY)) as client:
            return client.complete("x", model="pirate", max_tokens=3).text

    assert await asyncio.to_thread(blocking)


async def test_http(secure: RunningGateway) -> None:
    url = secure.http_url.replace("http:", "https:")
    async with httpx.AsyncClient(base_url=url, verify=context(AUTHORITY), timeout=60) as http:
        assert (await http.get("/v1/models")).status_code == 200
        body = {"model": "pirate", "prompt": "x", "max_tokens": 3, "stream": True}
        answer = await http.post("/v1/completions", json=body)
        assert answer.text.endswith("data: [DONE]\n\n")


async def test_http_2_is_not_promised_over_http(secure: RunningGateway) -> None:
    offers = context(AUTHORITY)
    offers.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = secure.http_url.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=offers)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    writer.close()


async def test_up_sees_it_serve(secure: RunningGateway, fleet: FakeFleet) -> None:
    assert fleet.server is not None
    gateway = secure.http_url.removeprefix("http://")
    ids = [plane.data_plane_id for plane in fleet.planes]
    waiting = partial(wait_until_serving, fleet.server.address, gateway)
    await waiting(ids, tls=True)
    for wrong in (waiting(ids, tls=False), waiting(["absent"], tls=True)):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wrong, 0.3)


async def test_a_command_says_that_it_does_not_trust_it(secure: RunningGateway) -> None:
    invoke = partial(CliRunner().invoke, app)
    address = f"--address=grpcs://{secure.address}"
    result = await asyncio.to_thread(invoke, ["status", address, "--timeout=20"])
    assert "CERTIFICATE_NOT_TRUSTED" in result.stderr and "--tls-ca-file" in result.stderr


async def test_what_does_not_trust_it_or_speaks_plaintext(secure: RunningGateway) -> None:
    for address, credentials in (
        (secure.address, trusting(OTHER)),
        (secure.address, None),
        (f"grpcs://{secure.address}", None),
    ):
        async with AsyncClient(address, credentials=credentials) as client:
            with pytest.raises(UnavailableError):
                await client.complete("x", timeout=20)
    url = secure.http_url.replace("http:", "https:")
    for base_url, verify in ((url, context(OTHER)), (secure.http_url, context(AUTHORITY))):
        async with httpx.AsyncClient(base_url=base_url, verify=verify, timeout=20) as http:
            with pytest.raises(httpx.TransportError):
                await http.get("/health")


async def test_a_renewed_certificate_is_shown_to_who_comes(
    secure: RunningGateway, tmp_path: Path
) -> None:
    url = secure.http_url.replace("http:", "https:")

    async def trusted_by(authority: trustme.CA) -> bool:
        try:
            async with (
                AsyncClient(secure.address, credentials=trusting(authority)) as client,
                httpx.AsyncClient(verify=context(authority), timeout=20) as http,
            ):
                await client.complete("x", model="pirate", max_tokens=1)
                return (await http.get(f"{url}/v1/models")).status_code == 200
        except (UnavailableError, httpx.TransportError):
            return False

    assert await trusted_by(AUTHORITY) and not await trusted_by(OTHER)
    async with AsyncClient(secure.address, credentials=trusting(AUTHORITY)) as before:
        running = before.generate("x", model="pirate", max_tokens=3)
        await anext(aiter(running))
        write_certificate(tmp_path, OTHER)
        await eventually(lambda: trusted_by(OTHER))
        assert not await trusted_by(AUTHORITY)
        assert [event async for event in running]  # what is connected stays so


async def test_a_certificate_that_is_broken_leaves_the_old_one(
    secure: RunningGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    OTHER.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
    await eventually(lambda: "KEY_VALUES_MISMATCH" in caplog.text)
    async with AsyncClient(secure.address, credentials=trusting(AUTHORITY)) as client:
        await client.complete("x", model="pirate", max_tokens=1)
    async with httpx.AsyncClient(verify=context(AUTHORITY), timeout=20) as http:
        url = secure.http_url.replace("http:", "https:")
        assert (await http.get(f"{url}/health")).status_code == 200


async def test_files_that_do_not_serve(fleet: FakeFleet, tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    (tmp_path / "empty.pem").touch()
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    for wrong, named in (
        ({"tls_key_file": None}, "tls_key_file"),
        ({"tls_cert_file": None}, "tls_cert_file"),
        ({"tls_cert_file": tmp_path / "none.pem"}, "none.pem: No such file"),
        ({"tls_key_file": tmp_path / "none.pem"}, "none.pem: No such file"),
        ({"tls_cert_file": tmp_path / "empty.pem"}, "empty.pem"),
        ({"tls_key_file": files["tls_cert_file"]}, "not a certificate and its private key"),
        ({"tls_key_file": encrypted}, "without a passphrase"),
    ):
        with pytest.raises(OptionError) as raised:
            async with running_gateway(fleet, **(files | wrong)):
                pass
        assert named in raised.value.message


async def test_who_opens_connections_and_says_nothing_holds_none(
    fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "TLS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(grpc_server, "HANDSHAKE_TIMEOUT_S", 0.2)
    half_a_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    async with running_gateway(fleet, **write_certificate(tmp_path)) as gateway:
        for address in (gateway.address, gateway.http_url.removeprefix("http://")):
            host, _, port = address.rpartition(":")
            for said in (b"", half_a_hello):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(said)
                with contextlib.suppress(ConnectionResetError):
                    await asyncio.wait_for(reader.read(), 10)  # raises TimeoutError
                writer.close()
