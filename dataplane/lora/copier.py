"""Adapters from host memory into their pages, layer by layer, while the batch runs.

Each running step gives the copies under way a share of its time, in slices, so that none waits for
a whole adapter; `PoolCopier.advance` is called between steps. A forward pass whose batch uses an
adapter before its last layer is in calls `wait(layer)` before each layer: on CPU that copies what
is missing of it, on CUDA it makes the stream wait for the copy stream's event.

A copy need not wait for steps that were launched before it: pages are free only when the last of
those that had them has been collected (dataplane/engine/holdings.py).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from kernels.cpu.floats import bits_of
from kernels.gpu.staging import staged
from kernels.lora.plan import PageRun

_SLICE_BYTES = 1 << 20
_CHUNK_BYTES = 8 << 20
"""Of layers that go over the bus at once, 0.3 ms at 25 GB/s (reasoned, not measured): a copy takes
the host as long whatever its size."""
_NOMINAL_BYTES_PER_S = 2e9
_KEEP = 0.9  # of the past at each measurement of the rate


class PoolCopy(Protocol):
    """One adapter on its way."""

    @property
    def num_layers_in(self) -> int: ...

    @property
    def remaining_bytes(self) -> int: ...

    def wait(self, layer: int) -> None:
        """Layers up to this one are in, as far as this thread's later work on the pool goes."""
        ...

    def advance(self) -> int:
        """Copies a slice, if copying is the caller's work here; its bytes, 0 when there is none."""
        ...

    def measured(self) -> tuple[int, float] | None:
        """Of one that is complete, its bytes and the seconds that the device took for them; None
        where `advance` copies."""
        ...

    def cancel(self) -> None:
        """Nothing is written any more; who takes the pages next may write to them at once."""
        ...


class CpuCopy:
    """Copied by whoever asks: between steps in slices, in a forward pass what it lacks.

    Safe to be advanced on one thread and waited for on another.
    """

    def __init__(self, source: torch.Tensor, pool: torch.Tensor, run: PageRun) -> None:
        """source: [num_layers, num_pages, page_elems]; pool: [num_layers, all pages, page_elems]"""
        self._source: torch.Tensor | None = source
        self._pool_bits = bits_of(pool)
        self._run = run
        self._num_layers, self._num_pages, page_elems = source.shape
        self._page_bytes = page_elems * source.element_size()
        self._slice = max(1, _SLICE_BYTES // self._page_bytes)
        self._lock = threading.Lock()
        self._layer = self._page = 0  # what comes next

    @property
    def num_layers_in(self) -> int:
        return self._layer

    @property
    def remaining_bytes(self) -> int:
        pages = (self._num_layers - self._layer) * self._num_pages - self._page
        return max(0, pages * self._page_bytes)

    def wait(self, layer: int) -> None:
        while self._layer <= layer and self.advance():
            pass

    def advance(self) -> int:
        with self._lock:
            if self._source is None:
                return 0
            layer, start = self._layer, self._page
            end = min(start + self._slice, self._num_pages)
            self._copy(self._source[layer, start:end], layer, start, end)
            self._page = end
            if end == self._num_pages:
                self._layer, self._page = layer + 1, 0
                if self._layer == self._num_layers:
                    self._source = None  # host memory may have it back
            return (end - start) * self._page_bytes

    def measured(self) -> tuple[int, float] | None:
        return None

    def cancel(self) -> None:
        with self._lock:
            self._source = None
            self._layer, self._page = self._num_layers, 0

    def _copy(self, source: torch.Tensor, layer: int, start: int, end: int) -> None:
        run = self._run
        # By numpy: torch would wake a second team of threads beside that of the device.
        if run.first >= 0:
            self._pool_bits[layer, run.first + start : run.first + end] = bits_of(source)
        else:
            self._pool_bits[layer, run.ids[start:end]] = bits_of(source)


class CudaCopy:
    """All of it queued at once on the copy stream, some layers at a time, an event after them."""

    def __init__(
        self,
        source: torch.Tensor,
        pool: torch.Tensor,
        run: PageRun,
        stream: torch.cuda.Stream,
    ) -> None:
        """source: contiguous and pinned: else the host would wait for all that was launched."""
        self._source: torch.Tensor | None = source  # must live until the copy has ended
        self._num_layers = source.shape[0]
        self._layer_bytes = source[0].numel() * source.element_size()
        self._layers_at_once = max(1, _CHUNK_BYTES // max(self._layer_bytes, 1))
        self._stream = stream
        self._events: list[torch.cuda.Event] = []
        self._begin = torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(stream):
            place = _placing(pool, run)
            self._begin.record(stream)
            for first in range(0, self._num_layers, self._layers_at_once):
                layers = slice(first, first + self._layers_at_once)
                place(layers, source[layers].to(pool.device, non_blocking=True))
                is_last = layers.stop >= self._num_layers
                event = torch.cuda.Event(enable_timing=is_last)
                event.record(stream)
                self._events.append(event)
        self._num_in = 0  # chunks

    @property
    def num_layers_in(self) -> int:
        while self._num_in < len(self._events) and self._events[self._num_in].query():
            self._num_in += 1
        if self._num_in == len(self._events):
            self._source = None
        return min(self._num_in * self._layers_at_once, self._num_layers)

    @property
    def remaining_bytes(self) -> int:
        return (self._num_layers - self.num_layers_in) * self._layer_bytes

    def wait(self, layer: int) -> None:
        event = self._events[layer // self._layers_at_once]
        torch.cuda.current_stream(self._stream.device).wait_event(event)

    def advance(self) -> int:
        return 0

    def measured(self) -> tuple[int, float] | None:
        took_s = self._begin.elapsed_time(self._events[-1]) / 1e3
        return self._num_layers * self._layer_bytes, took_s

    def cancel(self) -> None:
        # What is queued cannot be called back: whoever writes there next comes after it.
        torch.cuda.current_stream(self._stream.device).wait_event(self._events[-1])


def _placing(pool: torch.Tensor, run: PageRun) -> Callable[[slice, torch.Tensor], object]:
    """What puts layers of an adapter, which are on the pool's device, into its pages there."""
    if run.first >= 0:
        end = run.first + len(run.ids)
        return lambda layers, values: pool[layers, run.first : end].copy_(values)
    page_ids = staged(run.ids, torch.int64, pool.device)
    return lambda layers, values: pool[layers].index_copy_(1, page_ids, values)


class PoolCopier:
    """All copies under way. Slices go in turn to the one that lacks least and to the oldest, so
    that a small adapter passes a large one, which gets on all the same."""

    def __init__(self, pool: torch.Tensor, clock: Callable[[], float] = time.perf_counter) -> None:
        """pool: [num_layers, num_pages, page_elems]"""
        self._pool = pool
        self._clock = clock
        self._copies: list[PoolCopy] = []
        self.rate = CopyRate()
        self._began_s: dict[PoolCopy, float] = {}
        self.num_copied = 0
        self.copied_s = 0.0  # wall time of those, from `begin` until the last layer was in
        self._stream = torch.cuda.Stream(pool.device) if pool.is_cuda else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(pool.device))  # the pool is made

    @property
    def num_copies(self) -> int:
        return len(self._copies)

    def begin(
        self,
        source: torch.Tensor,
        run: PageRun,
        on_all_ranks: Callable[[PoolCopy], PoolCopy] | None = None,
    ) -> PoolCopy:
        """source: [num_layers, num_pages of run, page_elems] pool dtype, host; pinned with CUDA.
        on_all_ranks: makes of it the copy that is in when it is in on every rank."""
        copy: PoolCopy
        if self._stream is None:
            copy = CpuCopy(source, self._pool, run)
        else:
            copy = CudaCopy(source, self._pool, run, self._stream)
        if on_all_ranks is not None:
            copy = on_all_ranks(copy)
        if copy.remaining_bytes:
            self._copies.append(copy)
            self._began_s[copy] = self._clock()
        return copy

    def take_ended(self) -> list[tuple[PoolCopy, float]]:
        """Copies seen complete since the last call, and what each took, in seconds."""
        if not self._began_s:
            return []
        now_s = self._clock()
        ended = [
            (copy, now_s - began_s)
            for copy, began_s in self._began_s.items()
            if not copy.remaining_bytes
        ]
        for copy, took_s in ended:
            del self._began_s[copy]
            self.num_copied += 1
            self.copied_s += took_s
        return ended

    def advance(self, within_s: float) -> None:
        """Copies for about so long, and a slice at least."""
        for copy in [each for each in self._copies if not each.remaining_bytes]:
            self._copies.remove(copy)
            if (measured := copy.measured()) is not None:
                self.rate.observe(*measured)
        if not self._copies:
            return
        started_s = self._clock()
        num_bytes = num_slices = 0
        elapsed_s = 0.0
        while self._copies and (not num_slices or elapsed_s < within_s):
            if num_slices % 2:
                copy = self._copies[0]
            else:
                copy = min(self._copies, key=lambda each: each.remaining_bytes)
            done = copy.advance()
            if not done and copy.remaining_bytes:
                break  # the device copies; nothing to do but to wait
            num_bytes += done
            num_slices += 1
            if not copy.remaining_bytes:
                self._copies.remove(copy)
            elapsed_s = self._clock() - started_s
        if num_bytes and elapsed_s > 0:
            self.rate.observe(num_bytes, elapsed_s)

    def remaining_s(self, copy: PoolCopy) -> float:
        """How long the rest of it would take: on CPU by itself, over the bus after those that were
        begun before it."""
        num_bytes = copy.remaining_bytes
        if self._stream is not None:
            ahead = itertools.takewhile(lambda each: each is not copy, self._copies)
            num_bytes += sum(each.remaining_bytes for each in ahead)
        return num_bytes / self.rate.bytes_per_s

    def cancel(self, copy: PoolCopy) -> None:
        self._began_s.pop(copy, None)
        copy.cancel()
        self._copies = [each for each in self._copies if each is not copy]


class CopyRate:
    """Bytes over the seconds that they took, older ones fading."""

    def __init__(self, bytes_per_s: float = _NOMINAL_BYTES_PER_S) -> None:
        self._bytes = float(_SLICE_BYTES)
        self._s = _SLICE_BYTES / bytes_per_s

    def observe(self, num_bytes: int, took_s: float) -> None:
        self._bytes = _KEEP * self._bytes + num_bytes
        self._s = _KEEP * self._s + took_s

    @property
    def bytes_per_s(self) -> float:
        return self._bytes / self._s


def waiter(copies: Sequence[PoolCopy]) -> Callable[[int], None] | None:
    """What a forward pass calls before each layer; None when there is nothing to wait for."""
    if not copies:
        return None

    def wait(layer: int) -> None:
        for copy in copies:
            copy.wait(layer)

    return wait
