"""Lets calls in by their API keys."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from chorale.api_key import KEY, api_key_of
from chorale.errors import ChoraleError, PermissionDeniedError, UnauthenticatedError
from controlplane.gateway.access import needed as needs
from controlplane.gateway.access.caller import set_caller
from controlplane.gateway.access.keys import ApiKey, Keys
from controlplane.gateway.http.failures import api_error
from controlplane.gateway.http.json_response import json_response


class Guard(Collector):
    """keys: those that hold now. clock: seconds since 1970."""

    def __init__(self, keys: Callable[[], Keys], clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock
        self._refused = Counter[str]()

    def call(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """A gRPC call's. Raises: UnauthenticatedError, PermissionDeniedError."""
        self._let_in(metadata, needs.of_method(method), method)

    def request(self, request: Request) -> None:
        """An HTTP request's. Raises: as `call`."""
        needed = needs.of_request(request.scope)
        if needed:
            self._let_in(request.headers.items(), needed, request.scope["path"])

    def collect(self) -> Iterator[Any]:
        family = CounterMetricFamily(
            "chorale_gateway_key_refusals",
            "Calls that were refused for their API key.",
            labels=["reason"],
        )
        for reason, count in self._refused.items():
            family.add_metric([reason], count)
        yield family

    def _let_in(
        self, metadata: Sequence[tuple[str, str | bytes]], needed: needs.Needed, what: str
    ) -> None:
        try:
            key = self._known(api_key_of(metadata))
            if needed.isdisjoint(key.scopes):
                names = " or ".join(sorted(needed))
                raise PermissionDeniedError(
                    "API_KEY_SCOPE",
                    f"the API key {key.name!r} is good for {', '.join(key.scopes)}, and "
                    f"{what[:128]} needs {names}: use another key",
                    metadata={"scopes": names},
                )
        except ChoraleError as error:
            self._refused[error.reason] += 1
            raise
        set_caller(key)

    def _known(self, given: str) -> ApiKey:
        if not given:
            raise UnauthenticatedError(
                "API_KEY_MISSING",
                f"this gateway asks for an API key: send it as '{KEY}: KEY' or 'authorization: "
                "Bearer KEY'",
            )
        key = self._keys().find(given)
        if key is None:
            raise UnauthenticatedError(
                "API_KEY_UNKNOWN", "the API key is none that this gateway knows"
            )
        if key.has_ended(datetime.fromtimestamp(self._clock(), UTC)):
            raise UnauthenticatedError(
                "API_KEY_EXPIRED",
                f"the API key {key.name!r} ended at {key.expires:%Y-%m-%d %H:%M:%S %Z}: ask for "
                "a new one",
            )
        return key


class KeyCheck:
    """ASGI middleware: answers 401 or 403 to what the guard does not let in."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._guard.request(Request(scope))
            except ChoraleError as error:
                failure = api_error(error)
                headers = {"www-authenticate": "Bearer"} if failure.status == 401 else {}
                answer = json_response(failure.body, status=failure.status, headers=headers)
                return await answer(scope, receive, send)
        return await self._app(scope, receive, send)
