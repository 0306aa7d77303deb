"""Requests in the moments after Redis was away."""

from __future__ import annotations

import asyncio

import pytest

from chorale import AsyncClient, ChoraleError, UnavailableError
from tests.helpers.fake_fleet import FakeFleet


def away() -> UnavailableError:
    return UnavailableError("STORE_UNAVAILABLE", "Redis does not answer", retry_after_s=1.0)


def nobody() -> UnavailableError:
    return UnavailableError("NO_DATA_PLANE", "no live data plane", retry_after_s=1.0)


async def refusal(client: AsyncClient, timeout: float | None = None) -> str:
    with pytest.raises(ChoraleError) as seen:
        await client.complete("x", model="pirate", max_tokens=1, timeout=timeout)
    return seen.value.reason


async def test_data_planes_that_join_again_are_waited_for(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    fleet.admit_errors = [nobody()]
    assert await refusal(client) == "NO_DATA_PLANE", "nothing was away"
    fleet.admit_errors = [away(), nobody(), nobody()]
    assert await refusal(client) == "STORE_UNAVAILABLE", "which may take long"
    before = len(fleet.admits)
    assert (await client.complete("x", model="pirate", max_tokens=1)).text
    assert len(fleet.admits) == before + 3


async def test_the_wait_is_bounded(
    client: AsyncClient, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.gateway.outage._REJOINED_S", 0.4)
    fleet.admit_errors = [away(), *(nobody() for _ in range(9))]
    assert await refusal(client) == "STORE_UNAVAILABLE"
    assert await refusal(client, timeout=0.2) == "NO_DATA_PLANE", "no time to wait"
    async with asyncio.timeout(2):
        assert await refusal(client) == "NO_DATA_PLANE"
    assert fleet.admit_errors, "which are not all asked for"
