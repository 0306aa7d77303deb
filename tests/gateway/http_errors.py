"""Requests that are good, and what a refusal looks like."""

from __future__ import annotations

from typing import Any

import httpx

CHAT: dict[str, Any] = {"model": "pirate", "messages": [{"role": "user", "content": "x"}]}
COMPLETION: dict[str, Any] = {"model": "pirate", "prompt": "x"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert len(error["message"]) < 500
    return error
