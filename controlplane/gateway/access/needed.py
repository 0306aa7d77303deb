"""The scopes that each call needs: any one of those named is enough."""

from __future__ import annotations

from collections.abc import Set

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


def of_path(path: str) -> Needed:
    return PATHS.get(path, _ANY)
