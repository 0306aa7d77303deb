"""Requests in the moments after Redis was away."""

from __future__ import annotations

import asyncio

import pytest

from chorale import AsyncClient, ChoraleError, UnavailableError
from controlplane.gateway import outage
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
    client: AsyncClient, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_REJOINED_S", 600.0)
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
    monkeypatch.setattr(outage, "_PAUSE_S", 0.05)
    monkeypatch.setattr(outage, "_REJOINED_S", 0.4)
    fleet.admit_errors = [away(), *(nobody() for _ in range(600))]
    assert await refusal(client) == "STORE_UNAVAILABLE"
    async with asyncio.timeout(30):
        assert await refusal(client) == "NO_DATA_PLANE"
    assert fleet.admit_errors, "which are not all asked for"


async def test_who_has_no_time_does_not_wait(
    client: AsyncClient, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_PAUSE_S", 120.0)
    monkeypatch.setattr(outage, "_REJOINED_S", 600.0)
    fleet.admit_errors = [away(), nobody()]
    assert await refusal(client) == "STORE_UNAVAILABLE"
    assert await refusal(client, timeout=60.0) == "NO_DATA_PLANE"
