"""Web pages whose scripts may call from a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from controlplane.errors import OptionError
from controlplane.gateway.http.origins import checked_origins
from tests.gateway.http_errors import COMPLETION
from tests.gateway.key_callers import KEYS
from tests.helpers.api_keys import write_keys
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_gateway

PAGE = "https://app.example"
GRANT = "access-control-allow-origin"


@pytest_asyncio.fixture
async def opened(fleet: FakeFleet, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Of a gateway with keys that pages of one origin may call."""
    keys = write_keys(tmp_path / "keys.json", *KEYS)
    async with (
        running_gateway(fleet, allowed_origins=[PAGE], api_keys_file=keys) as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        yield http


def preflight(origin: str = PAGE, method: str = "POST") -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }


async def test_its_browser_is_told_that_it_may_and_needs_no_key_for_asking(
    opened: httpx.AsyncClient,
) -> None:
    granted = await opened.options("/v1/responses", headers=preflight())
    assert granted.status_code == 200 and granted.headers[GRANT] == PAGE
    assert "x-stainless-os" in granted.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in granted.headers


async def test_answers_and_refusals_can_be_read(
    opened: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    refused = await opened.post("/v1/completions", json=COMPLETION, headers={"origin": PAGE})
    assert refused.status_code == 401 and refused.headers[GRANT] == PAGE
    for stream in (False, True):
        answer = await opened.post(
            "/v1/completions",
            json={**COMPLETION, "stream": stream},
            headers={"origin": PAGE, "authorization": "Bearer user-key"},
        )
        assert answer.status_code == 200 and answer.headers[GRANT] == PAGE
        assert "x-chorale-model" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", "null"])
async def test_other_pages_may_not(opened: httpx.AsyncClient, origin: str) -> None:
    refused = await opened.options("/v1/completions", headers=preflight(origin))
    assert refused.status_code == 400 and GRANT not in refused.headers
    answer = await opened.get("/health", headers={"origin": origin})
    assert GRANT not in answer.headers


@pytest.mark.parametrize("path", ["/metrics", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
async def test_no_page_may_what_operators_do(fleet: FakeFleet, path: str) -> None:
    async with (
        running_gateway(fleet, allowed_origins=["*"], http_registry=True) as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        assert GRANT not in (await http.options(path, headers=preflight())).headers
        method = "GET" if path == "/metrics" else "POST"
        answer = await http.request(method, path, headers={"origin": PAGE}, json={})
        assert GRANT not in answer.headers
        assert (await http.get("/v1/models", headers={"origin": PAGE})).headers[GRANT] == "*"


async def test_none_may_by_default(gateway: RunningGateway, http: httpx.AsyncClient) -> None:
    refused = await http.options("/v1/completions", headers=preflight())
    assert refused.status_code == 405 and GRANT not in refused.headers
    assert GRANT not in (await http.get("/health", headers={"origin": PAGE})).headers


def test_what_is_an_origin() -> None:
    given = ["*", "http://localhost:3000", "https://App.Example", "http://[::1]:1"]
    assert checked_origins(given) == [each.lower() for each in given]


@pytest.mark.parametrize(
    "origin", ["", "app.example", "https://", "https://a/", "https://a/b", "ftp://a", "*.a", "null"]
)
def test_what_is_none(origin: str) -> None:
    with pytest.raises(OptionError) as caught:
        checked_origins([origin])
    assert "allow_origin" in caught.value.message
