"""What requests have brought is gone with them: cycles would stay until garbage is collected, which
servers of few objects seldom do, and long prompts add up to gigabytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from chorale import AsyncClient, NotFoundError
from controlplane.gateway.generation import Generation
from tests.helpers.fake_fleet import RunningGateway
from tests.helpers.garbage import no_collections
from tests.helpers.waiting import eventually


async def all_gone(num_left: Callable[[], int]) -> None:
    await eventually(lambda: num_left() == 0, within_s=5)


@pytest.mark.parametrize("model", ["pirate", "unknown"])
async def test_a_generation_goes_with_its_call(client: AsyncClient, model: str) -> None:
    with no_collections(Generation, Request) as num_left:
        try:
            assert (await client.complete("x", model=model, max_tokens=2)).token_ids
        except NotFoundError:
            assert model == "unknown"
        await all_gone(num_left)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"model": "pirate", "prompt": "x", "max_tokens": 2}, 200),
        ("/v1/completions", {"model": "unknown", "prompt": "x"}, 404),
        ("/v1/completions", {"model": "unknown", "prompt": "x", "stream": True}, 404),
        ("/v1/completions", {"model": "pirate", "prompt": "x", "best_of": 2}, 400),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": 3}, 400),
        ("/generate", {"inputs": "x", "parameters": {"adapter_id": "unknown"}}, 404),
        ("/tokenize", {"inputs": 3}, 400),
    ],
)
async def test_a_request_goes_with_its_answer(
    gateway: RunningGateway, path: str, body: dict[str, Any], status: int
) -> None:
    async with httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http:
        await http.get("/health")
        with no_collections(Generation, Request) as num_left:
            answer = await http.post(path, json=body)
            assert answer.status_code == status
            await all_gone(num_left)
