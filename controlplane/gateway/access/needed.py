"""The scopes that each call needs: any one of those named is enough."""

from __future__ import annotations

from collections.abc import Set

from starlette.routing import Match
from starlette.types import Scope as HttpScope

from controlplane.gateway.access.scope import Scope

Needed = Set[Scope]
EVERYBODY: Needed = frozenset()
_GENERATE: Needed = frozenset({Scope.GENERATE})
_READ: Needed = frozenset({Scope.OBSERVE, Scope.MANAGE})
_CHANGE: Needed = frozenset({Scope.MANAGE})
_ANY: Needed = frozenset(Scope)

_GENERATING_SERVICES = frozenset({"chorale.v1.InferenceService", "chorale.v1.AdmissionService"})
_READING = ("Get", "List")
PATHS = {
    "/health": EVERYBODY,
    "/metrics": _READ,
    "/v1/models": _ANY,
    "/v1/models/{name:path}": _ANY,
    "/v1/completions": _GENERATE,
    "/v1/chat/completions": _GENERATE,
    "/v1/responses": _GENERATE,
    "/v1/responses/{id}": _GENERATE,
    "/v1/load_lora_adapter": _CHANGE,
    "/v1/unload_lora_adapter": _CHANGE,
    "/": _GENERATE,
    "/generate": _GENERATE,
    "/generate_stream": _GENERATE,
    "/tokenize": _GENERATE,
    "/info": _ANY,
}
"""All routes. What is none is told so to everybody who has a key."""


def of_method(method: str) -> Needed:
    """method: /SERVICE/METHOD, of one of our own services. What is new and not known here needs
    the most."""
    service, _, name = method.removeprefix("/").partition("/")
    if service in _GENERATING_SERVICES:
        return _GENERATE
    if name == "ListBaseModels":
        return _ANY
    return _READ if name.startswith(_READING) else _CHANGE


def of_request(scope: HttpScope) -> Needed:
    """Of the route that the application itself will take: told by the path's text, an odd spelling
    that the router takes all the same would be let in as an unknown path."""
    matches = ((route.matches(scope)[0].value, route.path) for route in scope["app"].routes)
    matched, path = max(matches, key=lambda match: match[0])
    return PATHS.get(path, _CHANGE) if matched != Match.NONE.value else _ANY
