"""Which page belongs to whom. Pure bookkeeping; the bytes are `PagePool`'s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class PoolIntegrityError(AssertionError):
    """The books are wrong: a page leaked, or has two owners. Always a fault of ours."""


class PageAllocator:
    """Hands out pages [0, num_pages).

    Single pages come from the low end, runs from the high end and consecutive where such a run is
    free, so that adapters can be read without gathering while KV blocks come and go.
    Invariant: a page is free exactly when its owner is "".
    """

    def __init__(self, num_pages: int) -> None:
        self._free = bytearray(b"\x01" * num_pages)
        self._owners = [""] * num_pages
        self._num_free = num_pages
        self._lowest = 0  # no page below is free

    @property
    def num_pages(self) -> int:
        return len(self._owners)

    @property
    def num_free(self) -> int:
        return self._num_free

    def take_page(self, owner: str) -> int | None:
        """One page, or None when none is free."""
        page = self._free.find(1, self._lowest)
        if page < 0:
            return None
        self._take(page, owner)
        self._lowest = page + 1
        return page

    def take_run(self, count: int, owner: str) -> list[int] | None:
        """`count` pages, consecutive if possible, or None when fewer are free."""
        if count > self._num_free:
            return None
        start = self._free.rfind(b"\x01" * count)
        pages = list(range(start, start + count)) if start >= 0 else self._highest(count)
        for page in pages:
            self._take(page, owner)
        return pages

    def give_back(self, pages: Iterable[int], owner: str) -> None:
        """Frees pages of `owner`. Raises: PoolIntegrityError when one is not the owner's."""
        for page in pages:
            if self._owners[page] != owner:
                raise PoolIntegrityError(
                    f"page {page} belongs to {self._owners[page] or 'nobody'}, not to {owner}"
                )
            self._owners[page] = ""
            self._free[page] = 1
            self._num_free += 1
            self._lowest = min(self._lowest, page)

    def hand_over(self, page: int, owner: str, to: str) -> None:
        """Books a page of `owner` to another. Raises: PoolIntegrityError when it is not his."""
        if self._owners[page] != owner:
            raise PoolIntegrityError(
                f"page {page} belongs to {self._owners[page] or 'nobody'}, not to {owner}"
            )
        self._owners[page] = to

    def owners(self) -> list[str]:
        """Owner of each page; "" where free."""
        return list(self._owners)

    def check_integrity(self, claims: Mapping[str, Iterable[int]]) -> None:
        """Proves that every page is free or claimed by exactly the owner on the books.

        claims: owner -> pages that the owner believes to hold.
        Raises: PoolIntegrityError.
        """
        claimed: dict[int, str] = {}
        for owner, pages in claims.items():
            for page in pages:
                if page in claimed:
                    raise PoolIntegrityError(f"page {page}: {owner} and {claimed[page]} claim it")
                claimed[page] = owner
        for page, owner in enumerate(self._owners):
            if owner != claimed.get(page, ""):
                raise PoolIntegrityError(
                    f"page {page} is booked to {owner or 'nobody'},"
                    f" claimed by {claimed.get(page) or 'nobody'}"
                )
            if bool(self._free[page]) != (owner == ""):
                raise PoolIntegrityError(f"page {page}: free flag and owner disagree")
        if self._num_free != sum(self._free):
            raise PoolIntegrityError(f"{self._num_free} counted free, {sum(self._free)} are")
        if 1 in self._free[: self._lowest]:
            raise PoolIntegrityError(f"a page below {self._lowest} is free")

    def _highest(self, count: int) -> list[int]:
        pages: list[int] = []
        end = len(self._free)
        while len(pages) < count:
            end = self._free.rfind(1, 0, end)
            pages.append(end)
        return pages[::-1]

    def _take(self, page: int, owner: str) -> None:
        self._free[page] = 0
        self._owners[page] = owner
        self._num_free -= 1
