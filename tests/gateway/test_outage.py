"""Requests while the control plane or Redis is away, and in the moments after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest import mock

import pytest

from chorale import AsyncClient, ChoraleError, UnavailableError
from controlplane.gateway import outage
from controlplane.gateway.outage import Outage
from controlplane.gateway.recovery import RecoveryLimits
from tests.helpers.fake_fleet import FakeFleet, running_gateway


def away(reason: str = "STORE_UNAVAILABLE") -> UnavailableError:
    return UnavailableError(reason, "no answer", retry_after_s=1.0)


def nobody() -> UnavailableError:
    return UnavailableError("NO_DATA_PLANE", "no live data plane", retry_after_s=1.0)


async def refusal(client: AsyncClient, timeout: float | None = None) -> str:
    with pytest.raises(ChoraleError) as seen:
        await client.complete("x", model="pirate", max_tokens=1, timeout=timeout)
    return seen.value.reason


@asynccontextmanager
async def waiting_for(fleet: FakeFleet, outage_s: float) -> AsyncIterator[AsyncClient]:
    limits = RecoveryLimits(outage_s=outage_s)
    async with (
        running_gateway(fleet, recovery=limits) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        yield client


@pytest.mark.parametrize("reason", ["STORE_UNAVAILABLE", "CONTROL_PLANE_UNREACHABLE"])
async def test_what_is_away_for_a_moment_is_waited_for(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    over = mock.Mock()
    monkeypatch.setattr(Outage, "over", over)
    fleet.admit_errors = [away(reason), away(reason), away(reason)]
    async with waiting_for(fleet, 600.0) as client:
        assert (await client.complete("x", model="pirate", max_tokens=1)).text
    assert len(fleet.admits) == 4
    over.assert_called_once_with()


def test_nobody_waits_for_what_is_away_for_long() -> None:
    seen = Outage(5.0)
    assert seen.pause_s(away(), 100.0, 100.1)
    assert seen.pause_s(away(), 104.8, 104.9)
    assert seen.pause_s(away(), 104.9, 105.0) is None
    assert seen.pause_s(away(), 200.0, 200.1) is None, "since nothing was heard of it"
    seen.over()
    assert seen.pause_s(away(), 201.0, 201.1)
    silent = Outage(5.0)
    assert silent.pause_s(away("CONTROL_PLANE_UNREACHABLE"), 88.0, 100.0) is None, "waited for"


def test_a_refusal_is_an_answer() -> None:
    seen = Outage(5.0)
    assert seen.pause_s(away(), 100.0, 100.0)
    assert seen.pause_s(UnavailableError("ADAPTER_GONE", "m"), 103.0, 103.0) is None
    assert seen.pause_s(away(), 106.0, 106.0), "away once more"


def test_many_ask_seldom() -> None:
    seen = Outage(5.0)
    alone_s = seen.pause_s(away(), 100.0, 100.0)
    held = [seen.waiting() for _ in range(600)]
    for each in held:
        each.__enter__()
    many_s = seen.pause_s(away(), 100.0, 100.0)
    for each in held:
        each.__exit__(None, None, None)
    assert alone_s is not None and many_s is not None and many_s > 4 * alone_s
    assert seen.pause_s(away(), 100.0, 100.0) == alone_s


async def test_data_planes_that_join_again_are_waited_for(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_REJOINED_S", 600.0)
    async with waiting_for(fleet, 0.0) as client:
        fleet.admit_errors = [nobody()]
        assert await refusal(client) == "NO_DATA_PLANE", "nothing was away"
        fleet.admit_errors = [away(), nobody(), nobody()]
        assert await refusal(client) == "STORE_UNAVAILABLE"
        before = len(fleet.admits)
        assert (await client.complete("x", model="pirate", max_tokens=1)).text
        assert len(fleet.admits) == before + 3


async def test_the_wait_for_data_planes_is_bounded(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_SHORTEST_PAUSE_S", 0.05)
    monkeypatch.setattr(outage, "_REJOINED_S", 0.4)
    fleet.admit_errors = [away(), *(nobody() for _ in range(600))]
    async with waiting_for(fleet, 0.0) as client:
        assert await refusal(client) == "STORE_UNAVAILABLE"
        async with asyncio.timeout(30):
            assert await refusal(client) == "NO_DATA_PLANE"
    assert fleet.admit_errors, "which are not all asked for"


@pytest.mark.parametrize("error", [away(), nobody()])
async def test_who_has_no_time_does_not_wait(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch, error: UnavailableError
) -> None:
    monkeypatch.setattr(outage, "_SHORTEST_PAUSE_S", 120.0)
    monkeypatch.setattr(outage, "_LONGEST_PAUSE_S", 120.0)
    monkeypatch.setattr(outage, "_REJOINED_S", 600.0)
    fleet.admit_errors = [away(), error]
    async with waiting_for(fleet, 600.0) as client:
        assert await refusal(client, timeout=60.0) == "STORE_UNAVAILABLE"
        assert await refusal(client, timeout=60.0) == error.reason
