"""The one tensor that KV cache and adapters share."""

from __future__ import annotations

import torch

from dataplane.errors import PoolTooSmallError
from dataplane.models.config import ModelConfig
from dataplane.pool.allocator import PageAllocator
from dataplane.pool.idle import IdlePages
from dataplane.pool.mirror import PoolMirror


class PagePool:
    """`data`: [num_layers, num_pages, page_elems], the model's dtype and device.

    A page id is valid in every layer. A KV block takes one page:
    [2, page_tokens, num_kv_heads, head_dim] in each layer. What an adapter's pages hold is said in
    kernels/lora/plan.py.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        page_tokens: int,
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device,
        padding_page: bool = False,
    ) -> None:
        """padding_page: one page more that nobody can take, for rows that pad a step."""
        self.page_tokens = page_tokens
        self.page_elems = page_elems(config, page_tokens)
        size = (config.num_layers, num_pages + padding_page, self.page_elems)
        self.data = torch.zeros(size, dtype=dtype, device=device)
        self.allocator = PageAllocator(num_pages)
        self.idle = IdlePages()
        self.mirror: PoolMirror | None = None  # of other ranks' pools

    @property
    def num_pages(self) -> int:
        return self.allocator.num_pages

    @property
    def num_bytes(self) -> int:
        """Of all ranks' pools."""
        own_bytes = self.data.numel() * self.data.element_size()
        return own_bytes if self.mirror is None else own_bytes * self.mirror.num_ranks

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def padding_page(self) -> int:
        """The page that is no part of the books: written by whatever, read by padding alone."""
        assert self.data.shape[1] > self.num_pages
        return self.num_pages

    def blocks_for(self, num_tokens: int) -> int:
        """Pages that the KV of `num_tokens` takes."""
        return -(-num_tokens // self.page_tokens)

    @property
    def num_available(self) -> int:
        """Pages that are free or can be reclaimed."""
        return self.allocator.num_free + self.idle.num_pages

    def has_room(
        self, num_blocks: int, adapter_pages: int, idle_blocks: int, idle_adapter_pages: int
    ) -> bool:
        """Whether KV blocks and an adapter of so many pages fit beside what is in use. idle_*: of
        what nobody uses now but the newcomer will: it cannot be reclaimed for it."""
        needed = num_blocks + adapter_pages + idle_blocks + idle_adapter_pages
        return needed <= self.num_available

    def make_free(self, num_blocks: int, adapter_pages: int = 0) -> bool:
        """Reclaims what is worth least until so many pages are free. False, and nothing reclaimed,
        when those in use are too many."""
        num_pages = num_blocks + adapter_pages
        if num_pages > self.num_available:
            return False
        self.idle.reclaim(num_pages - self.allocator.num_free)
        return True

    def make_free_for(self, adapter_pages: int, worth: float) -> bool:
        """Reclaims only what is worth less. False when too few pages are free all the same; what
        was worth less is gone then."""
        missing = adapter_pages - self.allocator.num_free
        if missing > self.idle.num_pages:
            return False
        return missing <= 0 or self.idle.reclaim_worth_less(missing, worth) >= missing

    def take_block(self, owner: str) -> int | None:
        """A page for KV. On CPU it is cleared: what an earlier owner left could be NaN, and even
        masked attention would carry that into its result. On a GPU no kernel reads a slot that its
        sequence has not written."""
        page = self.allocator.take_page(owner)
        if page is not None and self.data.is_cpu:
            self.clear(page)
            if self.mirror is not None:
                self.mirror.clear(page)
        return page

    def clear(self, page: int) -> None:
        """On CPU. Not by torch's threads: beside those of the running step they would be one too
        many each."""
        self.data.view(torch.uint8).numpy()[:, page] = 0


def page_elems(config: ModelConfig, page_tokens: int) -> int:
    return 2 * page_tokens * config.num_kv_heads * config.head_dim


def pages_in(
    config: ModelConfig, pool_bytes: int, page_tokens: int, dtype: torch.dtype, min_tokens: int
) -> int:
    """Pages that `pool_bytes` hold.

    Raises: PoolTooSmallError when they cannot hold the KV of one sequence of `min_tokens`.
    """
    page_bytes = config.num_layers * page_elems(config, page_tokens) * dtype.itemsize
    num_pages = pool_bytes // page_bytes
    needed = -(-min_tokens // page_tokens)
    if num_pages < needed:
        raise PoolTooSmallError(
            "POOL_TOO_SMALL",
            f"--pool-bytes {pool_bytes} holds {num_pages} pages of {page_bytes} bytes; one"
            f" sequence of {min_tokens} tokens takes {needed}: give at least"
            f" {needed * page_bytes}, or lower --max-context-tokens",
            {
                "pool_bytes": str(pool_bytes),
                "needed_bytes": str(needed * page_bytes),
                "max_context_tokens": str(min_tokens),
            },
        )
    return num_pages
