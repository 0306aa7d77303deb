"""The beginnings of prompts, from clients to Admit."""

from __future__ import annotations

import httpx

from chorale import AsyncClient
from tests.helpers.fake_fleet import FakeFleet, RunningGateway

LONG = "Tell me of gardens. " * 50


async def test_hashes_go_to_admission_and_the_prompt_does_not(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    await client.complete(LONG, max_tokens=1)
    told = fleet.admits[-1]
    assert list(told.prompt_prefixes.lengths) == [256, 512, 768]
    assert len(set(told.prompt_prefixes.hashes)) == 3
    assert b"garden" not in told.SerializeToString()
    await client.complete("short", max_tokens=1)
    assert not fleet.admits[-1].HasField("prompt_prefixes")


async def test_a_salt_goes_to_the_data_plane_and_into_the_hashes(
    gateway: RunningGateway, client: AsyncClient, fleet: FakeFleet
) -> None:
    await client.complete(LONG, max_tokens=1)
    await client.complete(LONG, max_tokens=1, cache_salt="ada")
    assert fleet.planes[0].requests[-1].cache_salt == "ada"
    bare, salted = (set(each.prompt_prefixes.hashes) for each in fleet.admits[-2:])
    assert len(salted) == 3 and not bare & salted
    async with httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http:
        body = {"model": "prod", "prompt": LONG, "max_tokens": 1, "cache_salt": "ada"}
        assert (await http.post("/v1/completions", json=body)).status_code == 200
        assert fleet.planes[0].requests[-1].cache_salt == "ada"
        assert set(fleet.admits[-1].prompt_prefixes.hashes) == salted
        for wrong in ("", "s" * 257, 7):
            answer = await http.post("/v1/completions", json={**body, "cache_salt": wrong})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "cache_salt"


async def test_turns_over_http_have_the_ones_before_in_them(
    gateway: RunningGateway, fleet: FakeFleet
) -> None:
    messages = [{"role": "system", "content": LONG}, {"role": "user", "content": "Roses?"}]
    async with httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http:
        for answer in ("In June.", ""):
            body = {"model": "prod", "messages": messages, "max_tokens": 2}
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": "And tulips?"},
            ]
    first, second = (each.prompt_prefixes for each in fleet.admits[-2:])
    assert list(second.hashes)[: len(first.hashes)] == list(first.hashes)
    assert first.lengths[-1] == len(LONG) + len("Roses?")
