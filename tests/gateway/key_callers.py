"""Keys of all scopes, and what they are answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from chorale import AsyncClient
from chorale.errors import ChoraleError, PermissionDeniedError, UnauthenticatedError
from tests.helpers.api_keys import entry
from tests.helpers.fake_fleet import RunningGateway

KEYS = (
    entry("user-key"),
    entry("proxy-key", "*"),
    entry("watch-key", "ops", "observe"),
    entry("admin-key", "ops", "manage"),
    entry("old-key", expires="2020-01-01T00:00:00Z"),
)


def complete(client: AsyncClient) -> Any:
    return client.complete("x", max_tokens=1)


async def refusal(call: Callable[[AsyncClient], Any], address: str, key: str) -> str:
    """The reason why `call` is refused with `key`; empty when it is not."""
    async with AsyncClient(address, api_key=key) as client:
        try:
            await call(client)
        except (UnauthenticatedError, PermissionDeniedError) as error:
            return error.reason
        except ChoraleError:
            pass  # the fake control plane's: it was let in
    return ""


async def http_status(
    gateway: RunningGateway, key: str, method: str, path: str, **rest: Any
) -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=gateway.http_url, headers=headers, timeout=60) as http:
        return (await http.request(method, path, **rest)).status_code
