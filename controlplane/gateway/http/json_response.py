"""JSON answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response


def json_response(
    value: dict[str, Any] | list[dict[str, Any]],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """`value` as a response."""
    return Response(
        msgspec.json.encode(value), status, headers=headers, media_type="application/json"
    )
