"""Copies over the bus: chunks of layers and their events with stand-ins for streams, and on a GPU
that the host does not wait."""

from __future__ import annotations

import contextlib
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
    """Reached when the test says so."""

    def __init__(self) -> None:
        self.is_reached = False

    def record(self, stream: object) -> None:
        self.stream = stream

    def query(self) -> bool:
        return self.is_reached


@pytest.fixture
def compute(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """The stream on which steps run."""
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "Event", Event)
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
    assert stream.waited_for == [compute], "what was launched may still read these pages"


def test_a_layer_is_in_when_its_chunk_is(compute: Stream) -> None:
    copy, _, host, stream = begun([0, 1, 2, 3, 4])
    events = copy._events
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


@pytest.mark.gpu
@pytest.mark.parametrize("page_ids", [[4, 5, 6, 7, 8], [9, 2, 14, 3, 0]])
def test_the_host_does_not_wait_for_the_device(page_ids: list[int]) -> None:
    pool = torch.full((LAYERS, 16, ELEMS), torch.nan, device="cuda")
    host = torch.randn(LAYERS, PAGES, ELEMS).pin_memory()
    copies = PoolCopier(pool)
    copies.begin(host, PageRun.of(page_ids)).wait(LAYERS - 1)  # first uses of allocators
    torch.cuda.synchronize()
    pool.fill_(torch.nan)
    reached = torch.cuda.Event()
    torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
    reached.record()
    copy = copies.begin(host, PageRun.of(page_ids))
    copy.wait(LAYERS - 1)
    assert not reached.query(), "it was over before the copy had been queued"
    found = pool.cpu()
    assert torch.equal(found[:, page_ids], host)
    assert found[:, [page for page in range(16) if page not in page_ids]].isnan().all()
    assert copy.remaining_bytes == 0
