"""The other ways to share one pool's bytes between KV and adapters, for comparison.

Each is the product's pool, in front of which stands a quota: the same pages, the same worth, the
same scheduler. Which pages a side takes does not matter to it, only how many.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.errors import BenchError
from dataplane.lora.resident import ResidentAdapter
from dataplane.models.config import ModelConfig
from dataplane.pool.allocator import PageAllocator
from dataplane.pool.idle import Idle, IdlePages
from dataplane.pool.pool import PagePool

_ADAPTER = "adapter:"  # how owners of adapter pages are called on the books


@dataclass(frozen=True)
class Policy:
    """adapter_share: of all pages, what adapters may take, which KV may not; None: one pool.
    slots: so many adapters at most, each at the price of the largest; None: by their own size."""

    name: str
    adapter_share: float | None = None
    slots: int | None = None

    def max_adapter_pages(self, num_pages: int, largest: int) -> int:
        """An adapter of more pages is refused for good. largest: pages of the largest adapter."""
        if self.slots is not None:
            return largest
        return num_pages if self.adapter_share is None else round(self.adapter_share * num_pages)

    def pool(
        self, config: ModelConfig, *, num_pages: int, largest: int, longest: int, **rest: Any
    ) -> PagePool:
        """largest, longest: pages of the largest adapter and of the longest request's KV.

        Raises: BenchError when the KV's side could not hold one request.
        """
        if self.slots is None and self.adapter_share is None:
            return PagePool(config, num_pages=num_pages, **rest)
        adapter_pages = (self.slots or 1) * self.max_adapter_pages(num_pages, largest)
        if num_pages - adapter_pages < longest:
            raise BenchError(
                "POLICY_TOO_SMALL",
                f"{self.name} leaves {num_pages - adapter_pages} of {num_pages} pages for KV; the"
                f" longest request takes {longest}",
            )
        return SplitPool(
            config,
            num_pages=num_pages,
            adapter_pages=adapter_pages,
            slot_pages=largest if self.slots is not None else 0,
            **rest,
        )


class SplitPool(PagePool):
    """adapter_pages: the adapters' side; the rest is the KV's. slot_pages: what every adapter is
    counted as, 0 for its own size."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        adapter_pages: int,
        slot_pages: int,
        **rest: Any,
    ) -> None:
        super().__init__(config, num_pages=num_pages, **rest)
        self._sides = _Sides(num_pages, slot_pages)
        self._max_adapter_pages = adapter_pages
        self._max_blocks = num_pages - adapter_pages
        self._idle = _SplitIdle()
        self.allocator = self._sides
        self.idle = self._idle

    def has_room(
        self, num_blocks: int, adapter_pages: int, idle_blocks: int, idle_adapter_pages: int
    ) -> bool:
        of_adapters = [len(each.page_ids) for each in self._idle.adapters.items()]
        blocks = self._free_blocks + self._idle.num_pages - sum(of_adapters)
        pages = self._free_adapter_pages + sum(map(self._sides.price, of_adapters))
        return num_blocks + idle_blocks <= blocks and (
            self._sides.price(adapter_pages) + self._sides.price(idle_adapter_pages) <= pages
        )

    def make_free(self, num_blocks: int, adapter_pages: int = 0) -> bool:
        if not self.has_room(num_blocks, adapter_pages, 0, 0):
            return False
        self._idle.blocks.reclaim(num_blocks - self._free_blocks)
        while self._free_adapter_pages < self._sides.price(adapter_pages):
            self._idle.adapters.reclaim(1)
        return True

    def make_free_for(self, adapter_pages: int, worth: float) -> bool:
        price = self._sides.price(adapter_pages)
        while self._free_adapter_pages < price:
            if not self._idle.adapters.reclaim_worth_less(1, worth):
                return False
        return True

    @property
    def _free_blocks(self) -> int:
        return self._max_blocks - self._sides.num_blocks

    @property
    def _free_adapter_pages(self) -> int:
        return self._max_adapter_pages - self._sides.adapter_price


class _Sides(PageAllocator):
    """Counts what each side holds. An adapter's pages come and go together."""

    def __init__(self, num_pages: int, slot_pages: int) -> None:
        super().__init__(num_pages)
        self._slot_pages = slot_pages
        self.num_blocks = 0
        self.adapter_price = 0

    def price(self, adapter_pages: int) -> int:
        """What an adapter of so many pages is counted as."""
        return self._slot_pages if self._slot_pages and adapter_pages else adapter_pages

    def take_page(self, owner: str) -> int | None:
        page = super().take_page(owner)
        self.num_blocks += page is not None
        return page

    def take_run(self, count: int, owner: str) -> list[int] | None:
        pages = super().take_run(count, owner)
        if pages is not None:
            self.adapter_price += self.price(count)
        return pages

    def give_back(self, pages: Iterable[int], owner: str) -> None:
        returned = list(pages)
        super().give_back(returned, owner)
        if owner.startswith(_ADAPTER):
            self.adapter_price -= self.price(len(returned))
        else:
            self.num_blocks -= len(returned)


class _SplitIdle(IdlePages):
    """Idle adapters and idle blocks, each in an order of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = _Listed()
        self.blocks = IdlePages()

    def offer(self, item: Idle, worth: float) -> None:
        self._side(item).offer(item, worth)

    def withdraw(self, item: Idle) -> None:
        self._side(item).withdraw(item)

    def __contains__(self, item: Idle) -> bool:
        return item in self._side(item)

    def reclaim(self, num_pages: int) -> int:
        freed = self.blocks.reclaim(num_pages)
        return freed + self.adapters.reclaim(num_pages - freed)

    def _side(self, item: Idle) -> IdlePages:
        return self.adapters if isinstance(item, ResidentAdapter) else self.blocks


class _Listed(IdlePages):
    def items(self) -> list[ResidentAdapter]:
        return [each for each in self._offers if isinstance(each, ResidentAdapter)]
