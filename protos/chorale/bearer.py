"""A bearer token in a call's metadata, `authorization: Bearer TOKEN`: the fleet token."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from chorale.errors import UnauthenticatedError
from chorale.metadata_token import values_of

_KEY = "authorization"
_SCHEME = "bearer"


def bearer_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """What a caller sends; nothing for an empty token."""
    return ((_KEY, f"Bearer {token}"),) if token else ()


def check_bearer(metadata: Iterable[tuple[str, str | bytes]] | None, token: str) -> None:
    """metadata: of the call. token: the right one; an empty one lets nobody in.

    Raises: UnauthenticatedError (FLEET_TOKEN_MISSING, FLEET_TOKEN_WRONG).
    """
    given = bearer_of(metadata)
    if not given:
        raise UnauthenticatedError(
            "FLEET_TOKEN_MISSING",
            "metadata must hold one entry 'authorization: Bearer TOKEN' with the fleet token "
            "(CHORALE_FLEET_TOKEN)",
        )
    if not token or not hmac.compare_digest(given.encode(), token.encode()):
        raise UnauthenticatedError(
            "FLEET_TOKEN_WRONG",
            "the fleet token is not this server's: use the CHORALE_FLEET_TOKEN that it was "
            "started with",
        )


def bearer_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The token of a call; empty when it has none, or several."""
    values = values_of(metadata, _KEY)
    scheme, _, given = _text(values[0]).partition(" ") if len(values) == 1 else ("", "", "")
    return given.strip() if scheme.lower() == _SCHEME else ""


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")
