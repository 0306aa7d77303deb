"""Secrets of callers that go in entries of their own in a call's metadata."""

from __future__ import annotations

from collections.abc import Iterable

from chorale.errors import InvalidArgumentError

MAX_CHARS = 4096


def is_token(value: object) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_CHARS
        and value.isascii()
        and value.isprintable()
        and " " not in value
    )


def values_of(metadata: Iterable[tuple[str, str | bytes]] | None, key: str) -> list[str | bytes]:
    return [value for name, value in metadata or () if name == key]


def check_token(key: str, reason: str, values: list[str | bytes]) -> str:
    """The only one of `values`, the entries under `key`.

    Raises: InvalidArgumentError with `reason`, on a client as on a server: gRPC sends no metadata
    with other characters, and does not say which.
    """
    token = values[0]
    if len(values) > 1 or not isinstance(token, str) or not is_token(token):
        raise InvalidArgumentError(
            reason,
            f"{key} must be one token of at most {MAX_CHARS} printable ASCII characters "
            "without spaces",
            metadata={"field": key},
        )
    return token
