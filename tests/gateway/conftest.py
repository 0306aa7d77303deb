from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from chorale import AsyncClient
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_fleet, running_gateway


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[FakeFleet]:
    async with running_fleet() as fleet:
        yield fleet


@pytest_asyncio.fixture
async def gateway(fleet: FakeFleet) -> AsyncIterator[RunningGateway]:
    async with running_gateway(fleet) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address) as client:
        yield client
