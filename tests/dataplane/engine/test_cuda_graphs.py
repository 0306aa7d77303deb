"""Capturing with stand-ins for the device: what becomes of its errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dataplane.engine.cuda_graphs import cuda_capture

DEVICE = torch.device("cuda")


class Stream:
    def wait_stream(self, other: object) -> None:
        pass


class Streams:
    """As torch keeps the current one; `error` is what the end of a capture fails with."""

    def __init__(self) -> None:
        self.main = self.current = Stream()
        self.error: Exception | None = None

    @contextlib.contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph: object, *, stream: Stream, **options: object) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        if self.error is not None:
            raise self.error  # torch leaves the stream current then
        self.current = before


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    streams = Streams()

    class Graph:
        def replay(self) -> None:
            pass

    stand_ins: dict[str, Any] = {
        "graph_pool_handle": object,
        "Stream": lambda device: Stream(),
        "CUDAGraph": Graph,
        "stream": streams.use,
        "current_stream": lambda device: streams.current,
        "graph": streams.graph,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return streams


def test_work_runs_once_before_it_is_captured(streams: Streams) -> None:
    seen: list[Stream] = []
    replay = cuda_capture(DEVICE).record(lambda: seen.append(streams.current))
    assert callable(replay) and len(seen) == 2
    assert seen[0] is seen[1] is not streams.main and streams.current is streams.main


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'",
            torch.OutOfMemoryError,
        ),
        ("CUDA error: an illegal memory access was encountered", torch.AcceleratorError),
    ],
)
def test_a_driver_without_memory_is_told_as_torch_without(
    streams: Streams, text: str, expected: type[Exception]
) -> None:
    """Or graphs that there is no memory for could not be left out."""
    streams.error = torch.AcceleratorError(text)
    with pytest.raises(expected):
        cuda_capture(DEVICE).record(lambda: None)
    assert streams.current is streams.main
