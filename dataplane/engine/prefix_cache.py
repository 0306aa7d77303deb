"""Keys and values of token blocks that were computed before, shared by requests of one adapter.

A trie: a block is found by the whole chain of full token blocks before it, compared token for
token, so that no collision can mix two prefixes, and by the digest of the adapter that computed it
("" for the base model), so that a new version of an adapter never meets blocks of the old one.

An adapter that is activated in mid-prompt leaves the blocks before that to the base model, whose
they are in every way: base requests and other such adapters find them. Its own blocks follow on
them. The first of these has base tokens, too, maybe; how many is a part of what it is found by, as
its tokens do not tell that (a prompt's last invocation counts, and there may be an earlier one in
the same block).

All of it is so within a scope: tenants who are not to learn of each other's prompts have different
ones, and share nothing.

A sequence holds a path from the root. So whoever holds a block holds all before it, and blocks go
from the leaves up. A block nobody holds stays until the pool needs its page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dataplane.cost_model import CostModel
from dataplane.pool.allocator import PoolIntegrityError
from dataplane.pool.worth import UseCount, worth_key

if TYPE_CHECKING:
    from dataplane.pool.pool import PagePool

_KEEP = 0.998  # weight of the past at each new block
_DOUBT = 10.0  # at first one new block in so many is taken to be wanted again
_KEEP_AGE = 0.95  # weight of the past at each evicted block
_EVER_S = 86_400.0  # while none was ever evicted


class Lineage(NamedTuple):
    """Whose blocks those of a sequence are. digest: its adapter's, "" for the base model.
    active_from: where the tokens begin that the adapter applies to. scope: "" is everybody's."""

    digest: str = ""
    active_from: int = 0
    scope: str = ""


class BlockKey(NamedTuple):
    """What a block is found by, behind the one before it."""

    digest: str  # of the adapter that computed any of its tokens; "" for the base model
    num_base: int  # of its tokens, that the base model computed before the adapter's first; else 0
    tokens: tuple[int, ...]
    scope: str


class CachedBlock:
    """One page of `page_tokens` tokens, complete and never written again."""

    __slots__ = (
        "_cache",
        "children",
        "idle_since_s",
        "key",
        "page",
        "parent",
        "users",
        "uses",
    )

    def __init__(
        self,
        cache: PrefixCache,
        key: BlockKey,
        parent: CachedBlock | None,
        page: int,
    ) -> None:
        self._cache = cache
        self.key = key
        self.parent = parent  # None: it is a prompt's first
        self.page = page
        self.children: dict[BlockKey, CachedBlock] = {}
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
        self._roots: dict[BlockKey, CachedBlock] = {}
        self._num_new = _DOUBT
        self._num_hits = 1.0
        self._now_s: float | None = None  # when it was asked for anything last
        self._evicted_s: float | None = None  # the last time
        self._evicted_age_s = 0.0
        self.num_blocks = 0
        self.num_idle_pages = 0

    def match(self, lineage: Lineage, tokens: Sequence[int]) -> list[CachedBlock]:
        """The longest cached path over `tokens`, short of the last token, which is always computed.
        Holds nothing."""
        path: list[CachedBlock] = []
        children = self._roots
        size = self._pool.page_tokens
        for start in range(0, (len(tokens) - 1) // size * size, size):
            block = children.get(_key(lineage, tokens[start : start + size], start))
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
        lineage: Lineage,
        path: Sequence[CachedBlock],
        tokens: Sequence[int],
        page: int,
        owner: str,
        now_s: float,
    ) -> CachedBlock | None:
        """Takes over a full block, computed into `page` of `owner`, that follows the held `path`;
        the caller holds it then. Where the same block is cached already, that one is held instead
        and `page` stays the owner's. None when the cache is off."""
        if not self._enabled:
            return None
        key = _key(lineage, tokens, len(path) * self._pool.page_tokens)
        parent = path[-1] if path else None
        children = parent.children if parent else self._roots
        block = children.get(key)
        if block is not None:
            self._hold(block)
            return block
        block = CachedBlock(self, key, parent, page)
        self._pool.allocator.hand_over(page, owner, _owner(key.digest))
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
        self._pool.allocator.give_back((block.page,), _owner(block.key.digest))
        self.num_blocks -= 1
        self.num_idle_pages -= 1
        self._pool.idle.num_pages -= 1
        if block.parent:
            del block.parent.children[block.key]
            if not block.parent.users:
                self._offer(block.parent)
        else:
            del self._roots[block.key]
        return 1

    def claims(self) -> dict[str, list[int]]:
        """Owner -> pages, for the integrity check."""
        claims: dict[str, list[int]] = {}
        for block in self._blocks():
            claims.setdefault(_owner(block.key.digest), []).append(block.page)
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
        stack = [*self._roots.values()]
        while stack:
            block = stack.pop()
            yield block
            stack.extend(block.children.values())


def _key(lineage: Lineage, tokens: Sequence[int], start: int) -> BlockKey:
    """tokens: of the block, whose first one is at `start`."""
    num_base = lineage.active_from - start
    if num_base >= len(tokens):
        return BlockKey("", 0, tuple(tokens), lineage.scope)
    return BlockKey(lineage.digest, max(0, num_base), tuple(tokens), lineage.scope)


def _owner(digest: str) -> str:
    return f"prefix:{digest}"
