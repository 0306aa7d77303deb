"""What the gateway tells admission for tenants' limits, and how a refusal by them looks."""

from __future__ import annotations

import httpx
import openai
import pytest

from chorale import AsyncClient, ResourceExhaustedError, UnavailableError
from tests.gateway.test_failover import dies_after
from tests.helpers.fake_fleet import FakeFleet, RunningGateway

QUOTA = ResourceExhaustedError(
    "TENANT_QUOTA",
    "tenant 'acme' has reached its limit",
    metadata={"tenant": "acme", "limit": "requests_per_minute"},
    retry_after_s=2.2,
)


async def test_max_tokens_are_told(client: AsyncClient, fleet: FakeFleet) -> None:
    await client.complete("x", max_tokens=5, tenant="acme")
    assert (fleet.admits[-1].tenant, fleet.admits[-1].max_tokens) == ("acme", 5)
    await client.complete("x")
    assert not fleet.admits[-1].HasField("max_tokens")
    assert fleet.admits[-1].continued_ticket == b""


@pytest.mark.parametrize("num_tokens", [0, 3])
async def test_a_request_that_moves_shows_its_ticket(
    client: AsyncClient, fleet: FakeFleet, num_tokens: int
) -> None:
    draining = UnavailableError("DATA_PLANE_STOPPING", "going away", retry_after_s=0.1)
    fleet.planes[0].before_token = dies_after(num_tokens, draining)
    await client.complete("x", model="pirate", max_tokens=8)
    first, second = fleet.admits
    assert (first.continued_ticket, second.continued_ticket) == (b"", b"ticket-0")
    assert second.model == "pirate@2"


async def test_over_http(fleet: FakeFleet, gateway: RunningGateway) -> None:
    headers = {"x-chorale-tenant": "acme"}
    async with httpx.AsyncClient(base_url=gateway.http_url, headers=headers, timeout=60) as http:
        for path, body in (
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
            ("/v1/completions", {"prompt": "x", "stream": True}),
        ):
            fleet.admit_errors = [QUOTA]
            answer = await http.post(path, json={"model": "pirate", "max_tokens": 3, **body})
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "3"
            assert answer.headers["retry-after-ms"] == "2200"
            assert answer.json()["error"] == {
                "message": "tenant 'acme' has reached its limit",
                "type": "rate_limit_error",
                "param": None,
                "code": "rate_limit_exceeded",
            }
            assert (fleet.admits[-1].tenant, fleet.admits[-1].max_tokens) == ("acme", 3)
        fleet.admit_errors = [QUOTA]
        answer = await http.post("/generate", json={"inputs": "x"})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "3"
    assert not any(plane.requests for plane in fleet.planes)


async def test_the_sdk_raises_its_class(fleet: FakeFleet, gateway: RunningGateway) -> None:
    url = f"{gateway.http_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as sdk:
        fleet.admit_errors = [QUOTA]
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.completions.create(model="pirate", prompt="x")
        assert caught.value.code == "rate_limit_exceeded"
