"""Which names the HTTP server answers to.

A web page can make its own name lead to 127.0.0.1 (DNS rebinding) and then read whatever listens
there as its own site. What it cannot change is the name in the header Host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from chorale.address import bare_host
from controlplane.errors import OptionError
from controlplane.gateway.http.failures import ApiError, quoted
from controlplane.gateway.http.json_response import json_response

ANY = "*"
_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", re.ASCII)
_HOST = re.compile(r"(\[[0-9a-f:.%]+\]|[^:\[\]/@\s]+)(:[0-9]{1,5})?", re.ASCII)


class AllowedHosts:
    """This machine's own names, all addresses (a page cannot make a name of one), and `names`:
    "chorale.example.com", "*.example.com" for every name below, "*" for any.

    Raises: OptionError for what is no name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {"localhost", "*.localhost", *(_checked(name) for name in names)}

    def allows(self, header: str) -> bool:
        """header: of Host, HOST or HOST:PORT. A proxy or a tunnel may have another port."""
        if ANY in self._names:
            return True
        match = _HOST.fullmatch(header.lower())
        if match is None:
            return False
        name = match[1].removesuffix(".")
        if name in self._names or _is_address(name):
            return True
        return any(f"*.{above}" in self._names for above in _above(name))


class HostCheck:
    """ASGI middleware: answers 421 to requests for other names. One without the header comes from
    no browser."""

    def __init__(self, app: ASGIApp, allowed: AllowedHosts) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Request(scope).headers.getlist("host")
            if not all(self._allowed.allows(host) for host in given):
                error = _misdirected(given[0])
                answer = json_response(error.body, status=error.status)
                return await answer(scope, receive, send)
        return await self._app(scope, receive, send)


def _misdirected(host: str) -> ApiError:
    return ApiError(
        421,
        f"the header host is {quoted(host)}, and this gateway listens for its own machine: call it "
        "by localhost or its address, or start it with --allow-host NAME",
        code="host_not_allowed",
    )


def _checked(name: str) -> str:
    bare = bare_host(name.lower().removesuffix("."))
    if bare == ANY or _is_address(bare) or (len(bare) <= 253 and _NAME.fullmatch(bare)):
        return bare
    raise OptionError(
        "allow_host", f"{name[:200]!r} is no host name: NAME, *.NAME or *, without a port"
    )


def _above(name: str) -> Iterable[str]:
    """example.com and com for www.example.com."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _is_address(host: str) -> bool:
    try:
        ip_address(bare_host(host))
    except ValueError:
        return False
    return True
