"""What requests turned out to have been charged too much, as a data plane tells it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from controlplane.tenants.names import is_tenant

MAX_TENANTS = 1000
_MAX_TOKENS = 2**40


class Settlement(msgspec.Struct, frozen=True):
    """number: of its data plane, 1, 2, 3 …; 0: nothing is settled. unused: tenants and tokens."""

    number: int = 0
    unused: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(number: int, unused: Iterable[tuple[str, int]]) -> Settlement:
        """Without what cannot be."""
        kept = [
            (tenant, num_tokens)
            for tenant, num_tokens in unused
            if is_tenant(tenant) and abs(num_tokens) <= _MAX_TOKENS
        ]
        return Settlement(number, tuple(kept[:MAX_TENANTS]))

    def pack(self) -> str:
        return msgspec.json.encode(self.unused).decode()
