from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio

from chorale import AsyncClient, watched
from tests.gateway.key_callers import KEYS
from tests.helpers.api_keys import write_keys
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


@pytest_asyncio.fixture
async def http(gateway: RunningGateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http:
        yield http


@pytest_asyncio.fixture
async def sdk(gateway: RunningGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{gateway.http_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watched, "POLL_S", 0.01)
    return write_keys(tmp_path / "keys.json", *KEYS)


@pytest_asyncio.fixture
async def guarded(fleet: FakeFleet, key_file: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(fleet, api_keys_file=key_file) as gateway:
        yield gateway
