"""Names that the HTTP server answers to: no page may make its own name lead here."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from controlplane.errors import OptionError
from controlplane.gateway.http.hosts import AllowedHosts
from controlplane.gateway.options import GatewayOptions
from tests.gateway.http_errors import COMPLETION, error_of
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_gateway

OURS = [
    "localhost", "LOCALHOST:8000", "localhost.:80", "demo.localhost:8000", "127.0.0.1",
    "127.9.9.9:1", "[::1]:8000", "[::1]", "10.0.0.7:8000", "[fe80::1]:80",
]  # fmt: skip
FOREIGN = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
    "notlocalhost", "", "a b", "localhost:x", "localhost:8000:9", "user@localhost", "[::1",
    "localhost/evil", "127.0.0.1\n", "..", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("host", OURS)
def test_this_machine(host: str) -> None:
    assert AllowedHosts([]).allows(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_others(host: str) -> None:
    assert not AllowedHosts([]).allows(host)
    assert not AllowedHosts(["api.example", "*.inside.example"]).allows(host)


def test_names_of_the_operator() -> None:
    allowed = AllowedHosts(["API.example.", "*.inside.example", "::ffff:1.2.3.4"])
    for host in ("api.example", "Api.Example:443", "api.example.", "a.b.inside.example"):
        assert allowed.allows(host), host
    for host in ("x.api.example", "inside.example", "xinside.example", "example"):
        assert not allowed.allows(host), host
    assert AllowedHosts(["*"]).allows("evil.example")


@pytest.mark.parametrize("name", ["", "a b", "api.example:443", "http://x", "*x", "a.*", "x/y"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        AllowedHosts([name])
    assert "allow_host" in caught.value.message


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        ({"host": "127.0.0.1"}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "::"}, False),
        ({"host": "0.0.0.0", "allowed_hosts": ["a.example"]}, True),
    ],
)
def test_where_it_is_checked(options: dict[str, Any], checks: bool) -> None:
    assert GatewayOptions(**options).checks_host is checks


async def test_a_rebound_page_reads_and_changes_nothing(
    gateway: RunningGateway, fleet: FakeFleet
) -> None:
    headers = {"host": "evil.example"}
    async with httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http:
        for path in ("/v1/models", "/metrics", "/health", "/info", "/nowhere"):
            refused = await http.get(path, headers=headers)
            error = error_of(refused, 421)
            assert error["code"] == "host_not_allowed" and "--allow-host" in error["message"]
        load = {"lora_name": "x", "lora_path": "/x"}
        error_of(await http.post("/v1/load_lora_adapter", json=load, headers=headers), 421)
        error_of(await http.post("/v1/completions", json=COMPLETION, headers=headers), 421)
        assert not fleet.registered and not fleet.admits
        assert (await http.get("/health", headers={"host": "localhost:1"})).status_code == 200


async def test_what_the_operator_allows(fleet: FakeFleet) -> None:
    async with (
        running_gateway(fleet, allowed_hosts=["api.example"]) as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        for host, status in (("api.example:443", 200), ("other.example", 421)):
            answer = await http.get("/v1/models", headers={"host": host})
            assert answer.status_code == status


async def test_on_every_interface_all_names_go(fleet: FakeFleet) -> None:
    async with (
        running_gateway(fleet, host="0.0.0.0") as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        answer = await http.get("/v1/models", headers={"host": "chorale.example"})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v1/models HTTP/1.0\r\n", b"200"),  # of no browser
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", b"400"),
        (b"GET http://localhost/v1/models HTTP/1.1\r\nHost: evil.example\r\n", b"4"),
    ],
)
async def test_odd_requests(gateway: RunningGateway, head: bytes, status: bytes) -> None:
    host, _, port = gateway.http_url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + b"Connection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
