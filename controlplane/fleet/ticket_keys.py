"""The keys that sign tickets: made once, kept in Redis, shared with data planes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from controlplane.store.client import Store, as_dict

_KEY_BYTES = 32


class TicketKeys:
    """Keys of this Redis. The copy held here only saves round trips: `find` looks again for an id
    that is not in it, as after Redis came back empty and another replica made a new key.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[str, bytes] = {}

    async def find(self, signing_key_id: str) -> tuple[str, bytes]:
        """Id and key to sign with. signing_key_id: what Redis named, or "" when it has none."""
        if signing_key_id not in self._keys:
            signing_key_id = await self._reload()
        return signing_key_id, self._keys[signing_key_id]

    async def known(self) -> Mapping[str, bytes]:
        """Keys by id, from Redis only where none is known here yet."""
        if not self._keys:
            await self._reload()
        return self._keys

    async def all(self) -> Mapping[str, bytes]:
        """All keys by id, from Redis; the first caller ever makes one."""
        await self._reload()
        return dict(self._keys)

    async def _reload(self) -> str:
        signing_key_id, flat = await self._store.run(
            "ticket_keys", secrets.token_hex(8), secrets.token_hex(_KEY_BYTES)
        )
        self._keys = decode_keys(flat)
        return signing_key_id


def decode_keys(flat: list[str]) -> dict[str, bytes]:
    return {key_id: bytes.fromhex(key) for key_id, key in as_dict(flat).items()}
