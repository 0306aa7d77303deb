"""A caller's token for private sources, in a call's metadata."""

from __future__ import annotations

from collections.abc import Iterable

from chorale.metadata_token import check_token, values_of

KEY = "x-chorale-source-token"
_REASON = "SOURCE_TOKEN_INVALID"


def source_token_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """What a caller sends; nothing for an empty token.

    Raises: InvalidArgumentError (SOURCE_TOKEN_INVALID), as the server would.
    """
    return ((KEY, check_token(KEY, _REASON, [token])),) if token else ()


def source_token_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The token of a call; empty when it has none.

    Raises: InvalidArgumentError (SOURCE_TOKEN_INVALID).
    """
    values = values_of(metadata, KEY)
    return check_token(KEY, _REASON, values) if any(values) or len(values) > 1 else ""
