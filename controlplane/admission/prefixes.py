"""Beginnings of prompts as Redis knows them: keyed, so that nobody reads prompts out of it.

What a hash is of can be guessed where prompts can be. So Redis holds a keyed hash of it, by a key
that is made of the fleet token and is never there. Each tenant has its own: where a request is
placed shows nobody what others have asked.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from typing import NamedTuple

from controlplane.errors import InvalidRequestError
from controlplane.placement.expectation import SentPrefix

MAX_PREFIXES = 64
_MARK_BYTES = 9  # 12 characters
_DIGEST_CHARACTERS = 8  # as admit.lua has it


class ToldPrefixes(NamedTuple):
    """As PromptPrefixes has them."""

    hashes: Sequence[int] = ()
    lengths: Sequence[int] = ()


NO_PREFIXES = ToldPrefixes()


class Prefixes(NamedTuple):
    """marks: of the prompt's beginnings, the shortest first, and their lengths."""

    marks: Sequence[str] = ()
    lengths: Sequence[int] = ()

    def members(self, digest: str) -> list[str]:
        """What a data plane's set of them holds for an adapter, or for the base model."""
        return [digest[:_DIGEST_CHARACTERS] + mark for mark in self.marks]

    def sent(self, found: Sequence[int]) -> tuple[SentPrefix, ...]:
        """found: numbers of marks, from 1, each followed by milliseconds since it was sent."""
        pairs = zip(found[::2], found[1::2], strict=True)
        return tuple(SentPrefix(self.lengths[number - 1], ms / 1000) for number, ms in pairs)


class PrefixKey:
    """secret: the fleet token, which all control planes of a fleet have."""

    def __init__(self, secret: str) -> None:
        self._key = hashlib.blake2b(secret.encode(), person=b"chorale prefixes").digest()

    def keyed(self, tenant: str, told: ToldPrefixes) -> Prefixes:
        """Raises: InvalidRequestError (PREFIXES_INVALID)."""
        _check(told)
        if not told.hashes:
            return Prefixes()
        mine = hashlib.blake2b(tenant.encode() + b"\0", key=self._key, digest_size=_MARK_BYTES)
        return Prefixes([_mark(mine.copy(), each) for each in told.hashes], told.lengths)


def _mark(keyed: hashlib.blake2b, prefix_hash: int) -> str:
    keyed.update(prefix_hash.to_bytes(8, "little"))
    return b64encode(keyed.digest()).decode()


def _check(told: ToldPrefixes) -> None:
    lengths, num_hashes = told.lengths, len(told.hashes)
    if num_hashes > MAX_PREFIXES:
        raise _invalid(f"holds {num_hashes} hashes; at most {MAX_PREFIXES}", num_hashes)
    if len(lengths) != num_hashes:
        raise _invalid(
            f"holds {num_hashes} hashes and {len(lengths)} lengths: give each its own", len(lengths)
        )
    least = 1
    for length in lengths:
        if length < least:
            raise _invalid(
                f"has the length {length} where it must be at least {least}: the shortest first",
                length,
            )
        least = length


def _invalid(problem: str, value: int) -> InvalidRequestError:
    return InvalidRequestError(
        "PREFIXES_INVALID",
        f"prompt_prefixes {problem}",
        metadata={"field": "prompt_prefixes", "value": str(value)},
    )
