"""Client of Chorale, which serves many LoRA adapters of one base model.

    from chorale import Client

    with Client("127.0.0.1:50051") as client:
        for event in client.generate("Once upon a time", model="pirate", max_tokens=64):
            print(event.text, end="", flush=True)

`Client` blocks, `AsyncClient` awaits; both raise the errors of `chorale.errors`. Importing this
package is cheap: gRPC is imported when one of its names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chorale.aio import AsyncClient, AsyncGeneration
    from chorale.client import Client, Generation
    from chorale.errors import (
        AlreadyExistsError,
        CancelledError,
        ChoraleError,
        DeadlineExceededError,
        FailedPreconditionError,
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        PermissionDeniedError,
        ResourceExhaustedError,
        UnauthenticatedError,
        UnavailableError,
    )
    from chorale.events import (
        Accepted,
        Completion,
        Event,
        Finished,
        Timings,
        TokenLogprob,
        TokenLogprobs,
        Tokens,
    )
    from chorale.merges import MergeOptions
    from chorale.requests import AdmitOptions, GenerateOptions
    from chorale.token_spans import TokenSpan
    from chorale.tool_calls import FoundCall, find_tool_calls

__all__ = [
    "Accepted",
    "AdmitOptions",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncGeneration",
    "CancelledError",
    "ChoraleError",
    "Client",
    "Completion",
    "DeadlineExceededError",
    "Event",
    "FailedPreconditionError",
    "Finished",
    "FoundCall",
    "GenerateOptions",
    "Generation",
    "InternalError",
    "InvalidArgumentError",
    "MergeOptions",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "Timings",
    "TokenLogprob",
    "TokenLogprobs",
    "TokenSpan",
    "Tokens",
    "UnauthenticatedError",
    "UnavailableError",
    "find_tool_calls",
]

_HOMES = {
    "AsyncClient": "aio",
    "AsyncGeneration": "aio",
    "Client": "client",
    "Generation": "client",
    "Accepted": "events",
    "Completion": "events",
    "Event": "events",
    "Finished": "events",
    "Timings": "events",
    "TokenLogprob": "events",
    "TokenLogprobs": "events",
    "Tokens": "events",
    "AdmitOptions": "requests",
    "GenerateOptions": "requests",
    "MergeOptions": "merges",
    "TokenSpan": "token_spans",
    "FoundCall": "tool_calls",
    "find_tool_calls": "tool_calls",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'chorale' has no attribute {name!r}")
    value = getattr(import_module(f"chorale.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
