"""API keys as the gateway knows them: by their hashes."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from controlplane.gateway.access.scope import Scope
from controlplane.tenants.names import is_tenant

ANY_TENANT = "*"
MAX_NAME_CHARS = 128
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PREFIX = "chorale-"


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of the file.

    name: what people call it; unique. sha256: of the key, in lower hexadecimal digits.
    tenant: whom its requests are counted for; "*": whom each request names.
    expires: when it ends, with its time zone; None: never.
    """

    name: str
    sha256: str
    tenant: str
    scopes: Annotated[Sequence[Scope], msgspec.Meta(min_length=1)] = (Scope.GENERATE,)
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None

    def has_ended(self, now: datetime | None = None) -> bool:
        return self.expires is not None and self.expires <= (now or datetime.now(UTC))

    def problem(self) -> str | None:
        """What is wrong with it, or None."""
        if not (0 < len(self.name) <= MAX_NAME_CHARS and self.name.isprintable()):
            return f"name must be 1 to {MAX_NAME_CHARS} printable characters"
        if not _SHA256.fullmatch(self.sha256):
            return "sha256 must be 64 lower hexadecimal digits"
        if not is_tenant(self.tenant):
            return "tenant must be 1 to 128 printable ASCII characters without spaces"
        return None


class Keys:
    """Raises: ValueError when entries do not fit, or say the same name or hash twice."""

    def __init__(self, entries: Sequence[ApiKey]) -> None:
        self.entries = tuple(entries)
        self._by_hash: dict[str, ApiKey] = {}
        names = set[str]()
        for index, entry in enumerate(self.entries):
            problem = entry.problem()
            if problem is None and entry.name in names:
                problem = f"name {entry.name!r} is there twice"
            if problem is None and entry.sha256 in self._by_hash:
                problem = "sha256 is there twice"
            if problem is not None:
                raise ValueError(f"keys[{index}].{problem}")
            names.add(entry.name)
            self._by_hash[entry.sha256] = entry

    def find(self, key: str) -> ApiKey | None:
        """The entry of `key`. How long that takes tells nothing of the keys: it is their hashes
        that are compared."""
        return self._by_hash.get(hash_of(key))


def hash_of(key: str) -> str:
    """Keys are random, so one round of SHA-256 is enough: nobody guesses what has 256 bits."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    return _PREFIX + secrets.token_urlsafe(32)
