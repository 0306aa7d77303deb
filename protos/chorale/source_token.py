"""A caller's token for private sources, in a call's metadata."""

from __future__ import annotations

from collections.abc import Iterable

from chorale.errors import InvalidArgumentError

KEY = "x-chorale-source-token"
_MAX_CHARS = 4096


def source_token_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """What a caller sends; nothing for an empty token.

    Raises: InvalidArgumentError (SOURCE_TOKEN_INVALID), as the server would: gRPC sends no
    metadata with other characters, and does not say which.
    """
    return ((KEY, _checked(token)),) if token else ()


def source_token_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The token of a call; empty when it has none.

    Raises: InvalidArgumentError (SOURCE_TOKEN_INVALID).
    """
    values = [value for key, value in metadata or () if key == KEY]
    return _checked(*values) if values else ""


def _checked(*tokens: str | bytes) -> str:
    token = tokens[0]
    if (
        len(tokens) > 1
        or not isinstance(token, str)
        or len(token) > _MAX_CHARS
        or not (token.isascii() and token.isprintable())
        or " " in token
    ):
        raise InvalidArgumentError(
            "SOURCE_TOKEN_INVALID",
            f"{KEY} must be one token of at most {_MAX_CHARS} printable ASCII characters "
            "without spaces",
            metadata={"field": KEY},
        )
    return token
