"""Copies over the bus: chunks of layers and their events with stand-ins for streams, and on a GPU
that the host does not wait."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dataplane.lora import copier
from dataplane.lora.copier import CudaCopy, PoolCopier
from kernels.lora.plan import PageRun

LAYERS, PAGES, ELEMS = 7, 5, 8


@dataclass
class Stream:
    waited_for: list[object] = field(default_factory=list[object])
    device: object = None

    def wait_stream(self, other: object) -> None:
        self.waited_for.append(other)

    def wait_event(self, event: object) -> None:
        self.waited_for.append(event)


class Event:
    """Reached when the test says so, a millisecond after the one before."""

    count = itertools.count()

    def __init__(self, *, enable_timing: bool = False) -> None:
        self.is_reached = False
        self.is_timed = enable_timing

    def record(self, stream: object) -> None:
        self.stream = stream
        self.number = next(self.count)

    def query(self) -> bool:
        return self.is_reached

    def elapsed_time(self, end: Event) -> float:
        assert self.is_timed and end.is_timed
        return float(end.number - self.number)


@pytest.fixture
def compute(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """The stream on which steps run."""
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    # Three layers at once.
    monkeypatch.setattr(copier, "_CHUNK_BYTES", 3 * PAGES * ELEMS * 4 + 7)
    return stream


def begun(page_ids: list[int]) -> tuple[CudaCopy, torch.Tensor, torch.Tensor, Any]:
    pool = torch.full((LAYERS, 16, ELEMS), torch.nan)
    host = torch.randn(LAYERS, PAGES, ELEMS, generator=torch.Generator().manual_seed(1))
    stream: Any = Stream()
    return CudaCopy(host, pool, PageRun.of(page_ids), stream), pool, host, stream


@pytest.mark.parametrize("page_ids", [[4, 5, 6, 7, 8], [9, 2, 14, 3, 0]])
def test_every_layer_arrives_and_no_other_page_is_touched(
    compute: Stream, page_ids: list[int]
) -> None:
    _, pool, host, stream = begun(page_ids)
    assert torch.equal(pool[:, page_ids], host)
    others = [page for page in range(16) if page not in page_ids]
    assert pool[:, others].isnan().all()
    assert not stream.waited_for, "pages that are free are in no launched step"


def test_a_layer_is_in_when_its_chunk_is(compute: Stream) -> None:
    copy, _, host, stream = begun([0, 1, 2, 3, 4])
    events: Any = copy._events
    assert len(events) == 3 and all(each.stream is stream for each in events)
    layer_bytes = host[0].numel() * 4
    seen = []
    for each in events:
        seen.append((copy.num_layers_in, copy.remaining_bytes // layer_bytes))
        each.is_reached = True
    assert seen == [(0, 7), (3, 4), (6, 1)]
    assert (copy.num_layers_in, copy.remaining_bytes) == (7, 0)


@pytest.mark.parametrize(("layer", "chunk"), [(0, 0), (2, 0), (3, 1), (5, 1), (6, 2)])
def test_a_layer_waits_for_its_chunk(compute: Stream, layer: int, chunk: int) -> None:
    copy, *_ = begun([0, 1, 2, 3, 4])
    copy.wait(layer)
    assert compute.waited_for == [copy._events[chunk]]


def test_who_takes_the_pages_of_a_cancelled_copy_comes_after_all_of_it(compute: Stream) -> None:
    copy, *_ = begun([0, 1, 2, 3, 4])
    copy.cancel()
    assert compute.waited_for == [copy._events[-1]]


def over_the_bus(monkeypatch: pytest.MonkeyPatch) -> PoolCopier:
    pool = torch.zeros(LAYERS, 16, ELEMS)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return PoolCopier(pool)


def test_no_copy_comes_before_the_pool_is_made(
    compute: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream: Any = over_the_bus(monkeypatch)._stream
    assert stream.waited_for == [compute]


def test_the_bus_is_measured_and_copies_wait_for_those_before_them(
    compute: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = over_the_bus(monkeypatch)
    host = torch.randn(LAYERS, PAGES, ELEMS)
    layer_bytes = PAGES * ELEMS * 4
    for _ in range(100):
        copy: Any = copies.begin(host, PageRun.of([0, 1, 2, 3, 4]))
        for event in copy._events:
            event.is_reached = True
        copies.advance(0.0)
        assert copies.num_copies == 0
    # Three chunks, of which each took a millisecond.
    assert copies.rate.bytes_per_s == pytest.approx(LAYERS * layer_bytes / 3e-3, rel=0.01)
    first: Any = copies.begin(host, PageRun.of([0, 1, 2, 3, 4]))
    second = copies.begin(host, PageRun.of([5, 6, 7, 8, 9]))
    assert copies.remaining_s(first) == pytest.approx(3e-3, rel=0.01)
    assert copies.remaining_s(second) == pytest.approx(6e-3, rel=0.01)
    first._events[0].is_reached = True
    assert copies.remaining_s(first) == pytest.approx(3e-3 * 4 / 7, rel=0.01)
    assert copies.remaining_s(second) == pytest.approx(3e-3 * 11 / 7, rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("page_ids", [[4, 5, 6, 7, 8], [9, 2, 14, 3, 0]])
def test_a_copy_does_not_wait_for_steps_nor_the_host_for_either(page_ids: list[int]) -> None:
    pool = torch.full((LAYERS, 16, ELEMS), torch.nan, device="cuda")
    host = torch.randn(LAYERS, PAGES, ELEMS).pin_memory()
    copies = PoolCopier(pool)
    copies.begin(host, PageRun.of(page_ids)).wait(LAYERS - 1)  # first uses of allocators
    torch.cuda.synchronize()
    pool.fill_(torch.nan)
    torch.cuda.synchronize()
    reached = torch.cuda.Event()
    torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
    reached.record()
    copy = copies.begin(host, PageRun.of(page_ids))
    assert copies._stream is not None
    copies._stream.synchronize()
    assert copy.remaining_bytes == 0 and not reached.query()
    copy.wait(LAYERS - 1)
    found = pool.cpu()
    assert torch.equal(found[:, page_ids], host)
    assert found[:, [page for page in range(16) if page not in page_ids]].isnan().all()
