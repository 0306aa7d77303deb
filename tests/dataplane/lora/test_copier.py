"""Adapters reach their pages in slices, whole and in order."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

from dataplane.lora import copier
from dataplane.lora.copier import CpuCopy, PoolCopier, waiter
from kernels.lora.plan import PageRun

CPU = torch.device("cpu")
LAYERS, PAGES, ELEMS = 3, 5, 8


def source(seed: int = 1, pages: int = PAGES) -> torch.Tensor:
    return torch.randn(LAYERS, pages, ELEMS, generator=torch.Generator().manual_seed(seed))


def poisoned(pages: int = 16) -> torch.Tensor:
    return torch.full((LAYERS, pages, ELEMS), torch.nan)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "_SLICE_BYTES", 2 * ELEMS * 4)  # two pages


@pytest.mark.parametrize("page_ids", [[4, 5, 6, 7, 8], [9, 2, 14, 3, 0]])
def test_every_page_arrives_and_no_other_is_touched(page_ids: list[int]) -> None:
    pool, host = poisoned(), source()
    copy = CpuCopy(host, pool, PageRun.of(page_ids))
    sizes = []
    while done := copy.advance():
        sizes.append(done)
    assert max(sizes) == 2 * ELEMS * 4 and sum(sizes) == host.numel() * 4
    assert torch.equal(pool[:, page_ids], host)
    others = [page for page in range(16) if page not in page_ids]
    assert pool[:, others].isnan().all()
    assert copy.remaining_bytes == 0 and copy.num_layers_in == LAYERS


def test_waiting_brings_in_that_layer_and_no_more() -> None:
    pool, host = poisoned(), source()
    copy = CpuCopy(host, pool, PageRun.of([0, 1, 2, 3, 4]))
    copy.advance()
    copy.wait(1)
    assert copy.num_layers_in == 2
    assert torch.equal(pool[:2, :5], host[:2]) and pool[2].isnan().all()
    copy.wait(0)
    assert pool[2].isnan().all()


def test_a_cancelled_copy_writes_nothing_more() -> None:
    pool = poisoned()
    copies = PoolCopier(pool)
    copy = copies.begin(source(), PageRun.of([0, 1, 2, 3, 4]))
    copy.advance()
    copies.cancel(copy)
    pool.fill_(7.0)
    assert copies.num_copies == 0 and copy.advance() == 0
    copy.wait(LAYERS - 1)
    assert (pool == 7.0).all()


def test_a_copy_may_be_advanced_and_waited_for_on_two_threads() -> None:
    for seed in range(20):
        pool, host = poisoned(), source(seed)
        copy = CpuCopy(host, pool, PageRun.of([0, 1, 2, 3, 4]))

        def drain(copy: CpuCopy = copy) -> None:
            while copy.advance():
                pass

        thread = threading.Thread(target=drain)
        thread.start()
        for layer in range(LAYERS):
            copy.wait(layer)
            assert torch.equal(pool[layer, :5], host[layer])
        thread.join()


def test_time_bounds_what_a_step_copies() -> None:
    clock = itertools.count()
    copies = PoolCopier(poisoned(64), clock=lambda: float(next(clock)))
    copy = copies.begin(source(pages=40), PageRun.of(list(range(40))))
    whole = copy.remaining_bytes
    slice_bytes = 2 * ELEMS * 4
    copies.advance(0.0)
    assert whole - copy.remaining_bytes == slice_bytes, "a slice at least"
    copies.advance(3.0)
    assert whole - copy.remaining_bytes == 4 * slice_bytes, "a slice takes a second here"


def test_a_small_adapter_passes_a_large_one_which_gets_on() -> None:
    copies = PoolCopier(poisoned(64), clock=lambda: 0.0)
    large = copies.begin(source(pages=40), PageRun.of(list(range(40))))
    small = copies.begin(source(pages=4), PageRun.of(list(range(50, 54))))
    ticks = itertools.count()
    copies._clock = lambda: float(next(ticks))
    whole = large.remaining_bytes
    copies.advance(11.0)
    assert small.remaining_bytes == 0 < large.remaining_bytes < whole
    assert copies.num_copies == 1


def test_the_rate_is_measured() -> None:
    ticks = itertools.count()
    copies = PoolCopier(poisoned(64), clock=lambda: float(next(ticks)))
    copy = copies.begin(source(pages=60), PageRun.of(list(range(60))))
    before_s = copies.remaining_s(copy)
    for _ in range(40):
        copies.advance(1.0)
    rate = copy.remaining_bytes / copies.remaining_s(copy)
    assert before_s < 1e-3, "a guess"
    assert rate < 1e8, "it falls towards the 32 bytes a second of this clock"


def test_nothing_to_wait_for() -> None:
    assert waiter([]) is None
    assert PoolCopier(poisoned()).begin(source(pages=0), PageRun.of([])).remaining_bytes == 0
