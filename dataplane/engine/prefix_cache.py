"""Keys and values of token blocks that were computed before, shared by requests of one adapter.

A trie per adapter digest ("" for the base model) and scope: a block is found by the whole chain of
full token blocks before it, compared token for token, so that no collision can mix two prefixes; by
the digest, so that a new version of an adapter never meets blocks of the old one; and by the scope,
so that tenants who are not to learn of each other's prompts do not ("" is everybody's).

A sequence holds a path from the root. So whoever holds a block holds all before it, and blocks go
from the leaves up. A block nobody holds stays until the pool needs its page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dataplane.cost_model import CostModel
from dataplane.pool.allocator import PoolIntegrityError
from dataplane.pool.worth import UseCount, worth_key

if TYPE_CHECKING:
    from dataplane.pool.pool import PagePool

_KEEP = 0.998  # weight of the past at each new block
_DOUBT = 10.0  # at first one new block in so many is taken to be wanted again
_KEEP_AGE = 0.95  # weight of the past at each evicted block
_EVER_S = 86_400.0  # while none was ever evicted


class CachedBlock:
    """One page of `page_tokens` tokens, complete and never written again."""

    __slots__ = (
        "_cache",
        "children",
        "digest",
        "idle_since_s",
        "page",
        "parent",
        "scope",
        "tokens",
        "users",
        "uses",
    )

    def __init__(
        self,
        cache: PrefixCache,
        digest: str,
        scope: str,
        parent: CachedBlock | None,
        tokens: tuple[int, ...],
        page: int,
    ) -> None:
        self._cache = cache
        self.digest = digest
        self.scope = scope
        self.parent = parent  # None: the root of its digest and scope
        self.tokens = tokens
        self.page = page
        self.children: dict[tuple[int, ...], CachedBlock] = {}
        self.users = 0  # sequences that hold it
        self.uses = UseCount()
        self.idle_since_s = 0.0  # while nobody holds it

    def reclaim(self) -> int:
        return self._cache.evict(self)


class PrefixCache:
    """Owner of the pages of cached blocks. Without `enabled` it stays empty."""

    def __init__(self, pool: PagePool, costs: CostModel, *, enabled: bool = True) -> None:
        self._pool = pool
        self._costs = costs
        self._enabled = enabled
        self._roots: dict[tuple[str, str], dict[tuple[int, ...], CachedBlock]] = {}
        self._num_new = _DOUBT
        self._num_hits = 1.0
        self._now_s: float | None = None  # when it was asked for anything last
        self._evicted_s: float | None = None  # the last time
        self._evicted_age_s = 0.0
        self.num_blocks = 0
        self.num_idle_pages = 0

    def match(self, digest: str, tokens: Sequence[int], scope: str = "") -> list[CachedBlock]:
        """The longest cached path over `tokens`, short of the last token, which is always computed.
        Holds nothing."""
        path: list[CachedBlock] = []
        children = self._roots.get((digest, scope))
        size = self._pool.page_tokens
        for start in range(0, (len(tokens) - 1) // size * size, size):
            block = children.get(tuple(tokens[start : start + size])) if children else None
            if block is None:
                break
            path.append(block)
            children = block.children
        return path

    def hold(self, path: Iterable[CachedBlock], now_s: float) -> None:
        """Counts a use of each and keeps them from being reclaimed until `release`."""
        self._now_s = now_s
        for block in path:
            self._hold(block)
            block.uses.add(now_s)
            self._num_hits += 1.0

    def keep(
        self,
        digest: str,
        path: Sequence[CachedBlock],
        tokens: Sequence[int],
        page: int,
        owner: str,
        now_s: float,
        scope: str = "",
    ) -> CachedBlock | None:
        """Takes over a full block, computed into `page` of `owner`, that follows the held `path`;
        the caller holds it then. Where the same block is cached already, that one is held instead
        and `page` stays the owner's. None when the cache is off."""
        if not self._enabled:
            return None
        key = tuple(tokens)
        parent = path[-1] if path else None
        children = parent.children if parent else self._roots.setdefault((digest, scope), {})
        block = children.get(key)
        if block is not None:
            self._hold(block)
            return block
        block = CachedBlock(self, digest, scope, parent, key, page)
        self._pool.allocator.hand_over(page, owner, _owner(digest))
        children[key] = block
        self.num_blocks += 1
        self._num_new = _KEEP * self._num_new + 1.0
        self._num_hits *= _KEEP
        # Nobody has come back for it yet: it counts as much as such blocks turned out to.
        block.uses.add(now_s, min(1.0, self._num_hits / self._num_new))
        block.users = 1
        return block

    def release(self, path: Sequence[CachedBlock], now_s: float, *, wanted: bool = False) -> None:
        """Ends a hold. wanted: the holder will come back for them, as a preempted one."""
        self._now_s = now_s
        for block in reversed(path):
            assert block.users > 0
            if wanted:
                block.uses.add(now_s)
            block.users -= 1
            if not block.users:
                block.idle_since_s = now_s
                self.num_idle_pages += 1
                self._pool.idle.num_pages += 1
                self._offer(block)

    def discard(self, path: Sequence[CachedBlock]) -> None:
        """Forgets what of a released `path` nobody else holds or builds upon."""
        for block in reversed(path):
            if block.users or block.children:
                return
            self.forget(block)

    def cached_for_s(self, now_s: float) -> float:
        """How long ago a block may have been used to be still here: the age at which blocks were
        evicted lately, or all the time since the last eviction; 0 when the cache is off."""
        if not self._enabled:
            return 0.0
        if self._evicted_s is None:
            return _EVER_S
        return min(_EVER_S, max(self._evicted_age_s, now_s - self._evicted_s))

    def evict(self, block: CachedBlock) -> int:
        """Forgets an idle leaf as its page is needed. Returns 1."""
        now_s = self._now_s or block.idle_since_s
        age_s = max(0.0, now_s - block.idle_since_s)
        if self._evicted_s is None:
            self._evicted_age_s = age_s
        self._evicted_age_s += (1 - _KEEP_AGE) * (age_s - self._evicted_age_s)
        self._evicted_s = now_s
        return self.forget(block)

    def forget(self, block: CachedBlock) -> int:
        """Drops an idle leaf and frees its page. Returns 1."""
        assert not block.users and not block.children
        self._pool.idle.withdraw(block)
        self._pool.allocator.give_back((block.page,), _owner(block.digest))
        self.num_blocks -= 1
        self.num_idle_pages -= 1
        self._pool.idle.num_pages -= 1
        if block.parent:
            del block.parent.children[block.tokens]
            if not block.parent.users:
                self._offer(block.parent)
        else:
            root = block.digest, block.scope
            del self._roots[root][block.tokens]
            if not self._roots[root]:
                del self._roots[root]
        return 1

    def claims(self) -> dict[str, list[int]]:
        """Owner -> pages, for the integrity check."""
        claims: dict[str, list[int]] = {}
        for block in self._blocks():
            claims.setdefault(_owner(block.digest), []).append(block.page)
        return claims

    def check_integrity(self, held: Iterable[Sequence[CachedBlock]]) -> None:
        """held: the path of every sequence that holds one. Raises: PoolIntegrityError."""
        users: dict[CachedBlock, int] = {}
        for path in held:
            for block in path:
                users[block] = users.get(block, 0) + 1
        num_blocks = num_idle = 0
        for block in self._blocks():
            num_blocks += 1
            num_idle += not block.users
            if block.users != users.pop(block, 0):
                raise PoolIntegrityError(f"page {block.page}: {block.users} users are not right")
            reclaimable = not block.users and not block.children
            if reclaimable != (block in self._pool.idle):
                raise PoolIntegrityError(f"page {block.page}: wrongly offered or not offered")
        if users:
            raise PoolIntegrityError(f"{len(users)} blocks are held but not in the cache")
        if (num_blocks, num_idle) != (self.num_blocks, self.num_idle_pages):
            raise PoolIntegrityError(
                f"{self.num_blocks} blocks and {self.num_idle_pages} idle counted,"
                f" {num_blocks} and {num_idle} are"
            )

    def _hold(self, block: CachedBlock) -> None:
        if not block.users:
            self.num_idle_pages -= 1
            self._pool.idle.num_pages -= 1
            self._pool.idle.withdraw(block)
        block.users += 1

    def _offer(self, block: CachedBlock) -> None:
        if not block.children:
            cost_s = self._costs.recompute_s(self._pool.page_tokens)
            self._pool.idle.offer(block, worth_key(cost_s, block.uses, 1))

    def _blocks(self) -> Iterable[CachedBlock]:
        stack = [block for root in self._roots.values() for block in root.values()]
        while stack:
            block = stack.pop()
            yield block
            stack.extend(block.children.values())


def _owner(digest: str) -> str:
    return f"prefix:{digest}"
