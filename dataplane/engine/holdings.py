"""What running sequences hold of the pool, until no launched step can touch it any more.

A step is launched before the one ahead of it has been read. So when a sequence ends, a launched
step may still read its adapter and its cached blocks, and write to its pages: a row whose result
nobody wants. What it held is let go of when the last step that it is part of has been collected.
Until then nobody can evict, reuse or clear any of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.engine.prefix_cache import CachedBlock, PrefixCache
from dataplane.engine.sequence import Sequence

if TYPE_CHECKING:
    from dataplane.lora.resident import ResidentAdapters
    from dataplane.pool.pool import PagePool


@dataclass(frozen=True)
class _Left:
    """What a sequence held that has ended. digest: "" without adapter."""

    owner: str
    pages: list[int]
    path: list[CachedBlock]
    digest: str = ""


class Holdings:
    """Steps are counted as they are launched and as they are collected, in the same order."""

    def __init__(self, pool: PagePool, resident: ResidentAdapters, prefixes: PrefixCache) -> None:
        self._pool = pool
        self._resident = resident
        self._prefixes = prefixes
        self._num_launched = 0
        self._num_collected = 0
        self._left: dict[int, list[_Left]] = {}  # by the step they wait for

    @property
    def in_flight(self) -> bool:
        """Some step has been launched and not collected."""
        return self._num_collected < self._num_launched

    def launched(self, sequences: Iterable[Sequence]) -> None:
        """A step over these was given to the device."""
        self._num_launched += 1
        for sequence in sequences:
            sequence.last_step = self._num_launched

    def collected(self, now_s: float) -> None:
        """The oldest step in flight has run."""
        self._num_collected += 1
        for left in self._left.pop(self._num_collected, ()):
            self._let_go(left, now_s)

    def share(self, sequence: Sequence, num_tokens: int, now_s: float) -> None:
        """Shares the full blocks among its first `num_tokens`, whose step was collected.

        Of a block of the prompt that is cached already, the cached page is taken from then on. Of
        one with generated tokens the sequence keeps its own: the other may have been computed with
        another rounding, as part of a prompt, and answers must not depend on who was here before.
        """
        size = self._pool.page_tokens
        while (len(sequence.shared) + 1) * size <= num_tokens:
            index = len(sequence.shared)
            page = sequence.block_table[index]
            block = self._prefixes.keep(
                sequence.lineage,
                sequence.shared,
                sequence.tokens[index * size : (index + 1) * size],
                page,
                sequence.owner,
                now_s,
            )
            if block is None:
                return
            sequence.shared.append(block)
            if block.page != page and (index + 1) * size <= sequence.num_prompt:
                # A launched step may still read ours.
                sequence.block_table[index] = block.page
                self._leave(sequence, _Left(sequence.owner, [page], []), now_s)

    def release(
        self, sequence: Sequence, now_s: float, *, wanted: bool = False, ruined: bool = False
    ) -> None:
        """All that it holds. wanted: it will come back for it. ruined: nobody is to use what it
        computed. Both only when no launched step has it."""
        path = sequence.shared
        left = _Left(sequence.owner, _own_pages(sequence), path, sequence.queue_key)
        sequence.block_table = []
        sequence.shared = []
        sequence.num_computed = 0
        if wanted or ruined:
            assert sequence.last_step <= self._num_collected
            self._let_go(left, now_s, wanted=wanted)
            if ruined:
                self._prefixes.discard(path)
        else:
            self._leave(sequence, left, now_s)

    def claims(self, running: Iterable[Sequence]) -> dict[str, list[int]]:
        """Owner -> pages, for the integrity check; cached blocks are the cache's."""
        claims: dict[str, list[int]] = {}
        for each in running:
            claims[each.owner] = _own_pages(each)
        for left in self._all_left():
            claims[left.owner] = [*claims.get(left.owner, ()), *left.pages]
        return {owner: pages for owner, pages in claims.items() if pages}

    def held_blocks(self, running: Iterable[Sequence]) -> list[list[CachedBlock]]:
        return [*(each.shared for each in running), *(left.path for left in self._all_left())]

    def _leave(self, sequence: Sequence, left: _Left, now_s: float) -> None:
        if sequence.last_step <= self._num_collected:
            self._let_go(left, now_s)
        else:
            self._left.setdefault(sequence.last_step, []).append(left)

    def _let_go(self, left: _Left, now_s: float, *, wanted: bool = False) -> None:
        self._pool.allocator.give_back(left.pages, left.owner)
        self._prefixes.release(left.path, now_s, wanted=wanted)
        if left.digest:
            self._resident.release(left.digest)

    def _all_left(self) -> Iterable[_Left]:
        return (left for step in self._left.values() for left in step)


def _own_pages(sequence: Sequence) -> list[int]:
    """Of its block table, those that are not the cache's."""
    table, shared = sequence.block_table, sequence.shared
    duplicates = [page for page, block in zip(table, shared, strict=False) if block.page != page]
    return duplicates + table[len(shared) :]
