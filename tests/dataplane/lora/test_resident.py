"""Adapters in the pool: pinned, unloaded, given up half-way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dataplane.lora import copier
from dataplane.lora.layout import HostAdapter
from dataplane.lora.resident import ResidentAdapters
from dataplane.pool.pool import PagePool

NUM_PAGES = 12


class Bench:
    def __init__(self) -> None:
        shape = SimpleNamespace(num_layers=2, num_kv_heads=1, head_dim=2)
        self.pool = PagePool(
            cast(Any, shape),
            page_tokens=1,
            num_pages=NUM_PAGES,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.resident = ResidentAdapters(self.pool, lambda digest, nbytes: 1.0)

    def host(self, digest: str, pages: int = 4) -> HostAdapter:
        return HostAdapter(digest, cast(Any, None), torch.ones(2, pages, self.pool.page_elems))

    def install(self, digest: str, pages: int = 4, *, complete: bool = True) -> None:
        assert self.resident.install(self.host(digest, pages))
        if complete:
            self.resident.copier.advance(60.0)
        self.check()

    def digests(self) -> set[str]:
        return {each.digest for each in self.resident}

    def check(self) -> None:
        self.pool.allocator.check_integrity(self.resident.claims())
        self.resident.check_integrity()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(copier, "_SLICE_BYTES", 1)  # a page
    return Bench()


def test_pinned_adapters_are_never_evicted(bench: Bench) -> None:
    bench.resident.pin("later")
    for digest in ("now", "later", "other"):
        bench.install(digest, 3)
    bench.resident.pin("now")
    bench.check()
    assert not bench.pool.make_free(7)
    assert bench.pool.make_free(6)
    assert bench.digests() == {"now", "later"}
    bench.resident.acquire("now")
    bench.resident.unpin("now")
    bench.resident.unpin("nobody")
    assert not bench.pool.make_free(7), "it has a user"
    bench.resident.release("now")
    bench.check()
    assert bench.pool.make_free(9)
    assert bench.digests() == {"later"}
    assert bench.resident.num_pinned_pages == 3


def test_unload_frees_an_idle_adapter_at_once(bench: Bench) -> None:
    bench.install("a")
    bench.resident.pin("a")
    assert bench.resident.unload("a")
    assert bench.pool.allocator.num_free == NUM_PAGES
    assert bench.resident.unload("a"), "twice is no error"
    bench.install("a")
    assert bench.pool.make_free(NUM_PAGES), "it is pinned no more"


def test_unload_waits_for_the_last_user(bench: Bench) -> None:
    bench.install("a")
    bench.resident.acquire("a")
    bench.resident.acquire("a")
    assert not bench.resident.unload("a")
    bench.resident.release("a")
    bench.check()
    assert bench.digests() == {"a"}
    bench.resident.release("a")
    bench.check()
    assert bench.pool.allocator.num_free == NUM_PAGES


def test_a_pin_undoes_an_unload_under_way(bench: Bench) -> None:
    bench.install("a")
    bench.resident.acquire("a")
    bench.resident.unload("a")
    bench.resident.pin("a")
    bench.resident.release("a")
    bench.check()
    assert bench.digests() == {"a"}


def test_half_a_copy_goes_with_its_last_user(bench: Bench) -> None:
    bench.install("a", complete=False)
    bench.resident.acquire("a")
    bench.resident.copier.advance(0.0)
    bench.resident.release("a")
    bench.check()
    assert bench.digests() == set() and bench.resident.copier.num_copies == 0
    bench.install("b", complete=False)
    bench.pool.make_free(NUM_PAGES)
    assert bench.resident.copier.num_copies == 0, "evicted on the way"


def test_what_is_worth_less_gives_way_and_nothing_else(bench: Bench) -> None:
    for digest in ("rare", "often"):
        bench.install(digest)
    bench.resident.wanted("rare", 0.0)
    for _ in range(9):
        bench.resident.wanted("often", 0.0)
    for _ in range(3):
        bench.resident.wanted("new", 0.0)
    assert bench.resident.install_if_worth(bench.host("new", 8))
    assert bench.digests() == {"often", "new"}
    bench.resident.expected("guess", 0.0, 0.5)
    assert not bench.resident.install_if_worth(bench.host("guess", 4))
    assert bench.digests() == {"often", "new"}
    bench.check()


def test_a_forward_pass_waits_for_what_is_on_its_way(bench: Bench) -> None:
    bench.install("here")
    bench.install("coming", complete=False)
    assert bench.resident.waiter([]) is None
    assert bench.resident.waiter(["here", "here"]) is None
    wait = bench.resident.waiter(["here", "coming"])
    assert wait is not None
    resident = bench.resident.get("coming")
    assert resident is not None and resident.copy.num_layers_in == 0
    wait(0)
    assert resident.copy.num_layers_in == 1
    assert (bench.pool.data[0, resident.page_ids] == 1.0).all()
    wait(1)
    assert not resident.is_copying
