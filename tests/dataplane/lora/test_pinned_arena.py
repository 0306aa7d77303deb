"""Adapters' blocks in memory that is pinned once: none overlaps, all of it comes back."""

from __future__ import annotations

import gc
import random
import threading

import pytest
import torch

from dataplane.errors import DataPlaneError
from dataplane.lora import pinned_arena
from dataplane.lora.pinned_arena import HostBlock, PinnedArena, arena_bytes, pinned_block

PAGE = 4096


class Pinned:
    """What was pinned, and what torch was asked for instead."""

    def __init__(self) -> None:
        self.regions: list[int] = []
        self.fallbacks: list[tuple[int, ...]] = []

    def pin(self, region: torch.Tensor) -> Undo:
        self.regions.append(region.nbytes)
        return Undo(self)

    def fall_back(self, shape: tuple[int, ...], dtype: torch.dtype) -> HostBlock:
        self.fallbacks.append(shape)
        return HostBlock(torch.empty(shape, dtype=dtype), 0)


class Undo:
    def __init__(self, pinned: Pinned) -> None:
        self._pinned = pinned

    def __call__(self) -> None:
        self._pinned.regions.pop()


def holds(arena: PinnedArena, num_pages: int) -> bool:
    """Whether so many pages in a row are free."""
    return arena.try_empty((num_pages * PAGE,), torch.uint8) is not None


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Pinned:
    pinned = Pinned()
    monkeypatch.setattr(pinned_arena, "pinned_block", pinned.fall_back)
    return pinned


def test_a_block_has_its_shape_and_whole_pages(pinned: Pinned) -> None:
    arena = PinnedArena(4 * PAGE - 5, pinned.pin)
    assert pinned.regions == [4 * PAGE]
    values, num_bytes = arena.empty((2, 3, 500), torch.bfloat16)
    assert (values.shape, values.dtype, num_bytes) == ((2, 3, 500), torch.bfloat16, 2 * PAGE)
    assert values.is_contiguous() and values.data_ptr() % 64 == 0
    assert holds(arena, 2) and not holds(arena, 3)


def test_what_has_no_room_is_pinned_by_torch(pinned: Pinned) -> None:
    arena = PinnedArena(4 * PAGE, pinned.pin)
    kept = [arena.empty((PAGE,), torch.uint8) for _ in range(4)]
    assert not pinned.fallbacks
    arena.empty((1,), torch.uint8)
    del kept[2], kept[0]
    arena.empty((PAGE + 1,), torch.uint8)  # two pages are free, but not in a row
    assert pinned.fallbacks == [(1,), (PAGE + 1,)]
    del kept[0]
    arena.empty((3 * PAGE,), torch.uint8)
    assert len(pinned.fallbacks) == 2


def test_the_smallest_extent_that_holds_a_block_is_taken(pinned: Pinned) -> None:
    arena = PinnedArena(10 * PAGE, pinned.pin)
    kept = [arena.empty((pages * PAGE,), torch.uint8).values for pages in (3, 1, 2, 1)]
    small = kept[2].data_ptr()
    kept[0] = kept[2] = torch.empty(0)  # three, two and the rest of three pages are free
    assert arena.empty((2 * PAGE,), torch.uint8).values.data_ptr() == small


def test_memory_is_free_when_the_last_view_of_it_is_gone(pinned: Pinned) -> None:
    arena = PinnedArena(4 * PAGE, pinned.pin)
    view = arena.empty((4, PAGE), torch.uint8).values[1:3].view(torch.int16)[0]
    gc.collect()
    assert not holds(arena, 1)
    view.fill_(7)
    del view
    assert holds(arena, 4)


def test_the_region_is_pinned_until_its_last_block_is_gone(pinned: Pinned) -> None:
    arena = PinnedArena(4 * PAGE, pinned.pin)
    block = arena.empty((PAGE,), torch.uint8)
    del arena
    gc.collect()
    assert pinned.regions == [4 * PAGE]
    assert block.values.fill_(3).eq(3).all()
    del block
    assert not pinned.regions


def test_blocks_never_overlap_and_all_memory_comes_back(pinned: Pinned) -> None:
    rng = random.Random(1)
    arena = PinnedArena(64 * PAGE, pinned.pin)
    blocks: dict[int, torch.Tensor] = {}
    for number in range(3000):
        if blocks and rng.random() < 0.5:
            key = rng.choice(list(blocks))
            assert blocks.pop(key).eq(key % 251).all()
        elif len(pinned.fallbacks) < 1500:
            block = arena.empty((rng.randint(1, 9 * PAGE),), torch.uint8)
            blocks[number] = block.values.fill_(number % 251)
            del block
    assert all(blocks[key].eq(key % 251).all() for key in blocks)
    assert pinned.fallbacks, "the arena was never full"
    blocks.clear()
    assert holds(arena, 64), "all of it, in one piece"


def test_threads_share_it(pinned: Pinned) -> None:
    arena = PinnedArena(64 * PAGE, pinned.pin)
    failures: list[int] = []

    def churn(value: int) -> None:
        rng = random.Random(value)
        for _ in range(300):
            kept = [arena.empty((rng.randint(1, 5 * PAGE),), torch.uint8) for _ in range(3)]
            for block in kept:
                block.values.fill_(value)
            if not all(block.values.eq(value).all() for block in kept):
                failures.append(value)

    threads = [threading.Thread(target=churn, args=(value,)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert holds(arena, 64), "all of it, in one piece"


def test_memory_that_cannot_be_pinned_is_a_typed_error() -> None:
    def refuse(region: torch.Tensor) -> Undo:
        raise RuntimeError("cudaHostRegister failed with 2")

    with pytest.raises(DataPlaneError, match="lower --host-cache-bytes") as caught:
        PinnedArena(PAGE, refuse)
    assert caught.value.reason == "HOST_MEMORY_MISSING"


def test_there_is_room_for_what_is_built_before_another_goes() -> None:
    assert arena_bytes(0) == 64 << 20
    assert arena_bytes(80 << 30) == 90 << 30


@pytest.mark.gpu
def test_a_gpu_reads_it_while_the_host_goes_on() -> None:
    arena = PinnedArena(32 << 20)
    values = arena.empty((1 << 22,), torch.float32).values.normal_()
    assert values.is_pinned() and not torch.empty(1).is_pinned()
    found = torch.empty_like(values, device="cuda")
    torch.cuda.synchronize()
    reached = torch.cuda.Event()
    torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
    reached.record()
    found.copy_(values, non_blocking=True)
    assert not reached.query()
    assert torch.equal(found.cpu(), values)
    del values, arena
    gc.collect()
    again = PinnedArena(32 << 20)  # what was pinned before is so no more
    assert again.empty((1,), torch.uint8).values.is_pinned()
    assert pinned_block((3,), torch.float32).num_bytes == 16
