"""The allocator's books, under any order of calls."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dataplane.pool.allocator import PageAllocator, PoolIntegrityError

PAGES = 24


class Books(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.allocator = PageAllocator(PAGES)
        self.held: dict[str, list[int]] = {}
        self.next = 0

    def owner(self) -> str:
        self.next += 1
        return f"owner{self.next}"

    @rule()
    def take_page(self) -> None:
        owner = self.owner()
        page = self.allocator.take_page(owner)
        assert (page is None) == (sum(map(len, self.held.values())) == PAGES)
        if page is not None:
            self.held[owner] = [page]

    @rule(count=st.integers(1, 10))
    def take_run(self, count: int) -> None:
        owner, free = self.owner(), self.allocator.num_free
        pages = self.allocator.take_run(count, owner)
        assert (pages is None) == (count > free)
        if pages is not None:
            assert len(set(pages)) == count
            self.held[owner] = pages

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if self.held:
            owner = data.draw(st.sampled_from(sorted(self.held)))
            self.allocator.give_back(self.held.pop(owner), owner)

    @invariant()
    def books_are_right(self) -> None:
        self.allocator.check_integrity(self.held)
        assert self.allocator.num_free == PAGES - sum(map(len, self.held.values()))


Books.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestBooks = Books.TestCase


def test_runs_are_consecutive_when_they_can_be() -> None:
    allocator = PageAllocator(10)
    assert allocator.take_run(4, "a") == [6, 7, 8, 9]
    assert allocator.take_page("b") == 0
    assert allocator.take_run(5, "c") == [1, 2, 3, 4, 5]
    assert allocator.take_run(1, "d") is None


def test_integrity_check_sees_each_kind_of_fault() -> None:
    def allocator() -> PageAllocator:
        fresh = PageAllocator(4)
        fresh.take_page("a")
        return fresh

    for claims in ({}, {"a": [1]}, {"b": [0]}, {"a": [0], "b": [0]}, {"a": [0, 1]}):
        with pytest.raises(PoolIntegrityError):
            allocator().check_integrity(claims)
    with pytest.raises(PoolIntegrityError):
        allocator().give_back([0], "b")
    broken = allocator()
    broken._num_free += 1
    with pytest.raises(PoolIntegrityError):
        broken.check_integrity({"a": [0]})
    broken = allocator()
    broken._free[0] = 1
    with pytest.raises(PoolIntegrityError):
        broken.check_integrity({"a": [0]})
