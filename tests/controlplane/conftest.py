from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.control_plane import ControlPlane, running
from tests.helpers.redis import redis_server, redis_url

__all__ = ["redis_server", "redis_url"]


@pytest.fixture
async def plane(redis_url: str, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """A control plane that lets adapters in from the test's directory."""
    async with running(redis_url, adapter_roots=[tmp_path]) as control_plane:
        yield control_plane
