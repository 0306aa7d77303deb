"""A client's API key in a call's metadata.

It has an entry of its own, as `authorization` may hold the fleet token; a key that comes there,
`Bearer KEY`, as clients of other servers send it, counts where the entry is missing.
"""

from __future__ import annotations

from collections.abc import Iterable

from chorale.bearer import bearer_of
from chorale.metadata_token import check_token, is_token, values_of

KEY = "x-chorale-api-key"


def api_key_metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """What a caller sends; nothing for an empty key.

    Raises: InvalidArgumentError (API_KEY_INVALID).
    """
    return ((KEY, check_token(KEY, "API_KEY_INVALID", [api_key])),) if api_key else ()


def api_key_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The key of a call; empty when it has none, or something that can be none."""
    entries = tuple(metadata or ())
    values = values_of(entries, KEY)
    given = values[0] if len(values) == 1 else "" if values else bearer_of(entries)
    return given if isinstance(given, str) and is_token(given) else ""
