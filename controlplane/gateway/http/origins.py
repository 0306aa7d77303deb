"""Which web pages may call the HTTP server from a browser (CORS).

None may unless the operator names them: a page's script speaks with whatever its visitor can reach.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from controlplane.errors import OptionError

ANY = "*"
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?", re.ASCII)
# For pages never: what changes the registry, and what only operators read.
_CLOSED = frozenset({"/metrics", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
# What scripts may read beside what any page may.
_READ = ("retry-after", "retry-after-ms", "x-request-id", "x-chorale-model")
_KEPT_S = 600


class Origins:
    """ASGI middleware: has browsers hand answers to pages of `origins`. Keys are headers that a
    page sets itself: no cookies, no browser's own logins."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=(ANY,),  # SDKs send many of their own
            expose_headers=_READ,
            max_age=_KEPT_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_closed = scope["type"] != "http" or scope["path"] in _CLOSED
        await (self._app if is_closed else self._shared)(scope, receive, send)


def checked_origins(origins: Iterable[str]) -> list[str]:
    """As browsers write them: "https://app.example", and "*" for all.

    Raises: OptionError for what is no origin.
    """
    return [_checked(origin) for origin in origins]


def _checked(origin: str) -> str:
    if origin == ANY or (len(origin) <= 300 and _ORIGIN.fullmatch(origin.lower())):
        return origin.lower()
    raise OptionError(
        "allow_origin",
        f"{origin[:200]!r} is no origin: http(s)://NAME or http(s)://NAME:PORT, without a path, "
        "or *",
    )
