"""The secret that data planes share with the control plane."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from controlplane.errors import NotAuthenticatedError

_SCHEME = "bearer"


def check_fleet_token(metadata: Iterable[tuple[str, str | bytes]] | None, token: str) -> None:
    """metadata: of the call; its `authorization` must be `Bearer TOKEN`.

    Raises: NotAuthenticatedError (FLEET_TOKEN_MISSING, FLEET_TOKEN_WRONG).
    """
    values = [value for key, value in metadata or () if key == "authorization"]
    scheme, _, given = _text(values[0]).partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != _SCHEME or not given:
        raise NotAuthenticatedError(
            "FLEET_TOKEN_MISSING",
            "metadata must hold one entry 'authorization: Bearer TOKEN' with the fleet token "
            "(CHORALE_FLEET_TOKEN)",
        )
    if not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise NotAuthenticatedError(
            "FLEET_TOKEN_WRONG",
            "the fleet token is not this control plane's: start both with the same "
            "CHORALE_FLEET_TOKEN",
        )


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")
