"""Thousands of different adapters without thousands of files.

The weights of adapter i are a window, i steps further on, into one block of random numbers that
lies pinned in host memory. At every place any two adapters of a rank differ, each is copied to
pages of its own over the bus, and there the kernels read its own bytes; what is saved is the host
memory of the copies, and reading and parsing files, which `cold` measures. Layouts are the
product's: made by parsing and packing one adapter of each rank in PEFT's format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from safetensors.torch import save

from benchmarks.gpu.model import RandomModel
from benchmarks.models import ALL_LINEAR, adapter_fields, adapter_shapes
from dataplane.channel import Adapter
from dataplane.lora.layout import HostAdapter
from dataplane.lora.loader import LoadResult
from storage.adapter.manifest import ParsedAdapter, parse_adapter
from storage.loader import LoadTimings, Residency

STEP_ELEMS = 64
_SCALE = 0.02
_HOST_BYTES = 1 << 40  # nothing is ever let go of
_SOURCE = "window"


class Windows:
    """The adapters of one model. Index and rank make an adapter; indices are below `count`."""

    def __init__(
        self,
        model: RandomModel,
        *,
        ranks: Sequence[int],
        count: int,
        targets: tuple[str, ...] = ALL_LINEAR,
        scale: float = _SCALE,
    ) -> None:
        """scale: standard deviation of the random numbers."""
        self.model = model
        self.targets = targets
        self._ranks = {rank: _peft_bytes(model, rank, targets) for rank in sorted(set(ranks))}
        self._num_bytes = {rank: model.adapter_bytes(rank, targets) for rank in self._ranks}
        self._count = count
        self._scale = scale
        self._known: dict[str, tuple[int, int]] = {}

    def adapter(self, rank: int, index: int) -> Adapter:
        assert rank in self._ranks and 0 <= index < self._count
        name = f"r{rank}-{index}"
        digest = hashlib.sha256(name.encode()).hexdigest()
        self._known[digest] = (rank, index)
        return Adapter(digest, _SOURCE, name)

    def num_bytes(self, adapter: Adapter) -> float:
        """Of its matrices."""
        return self._num_bytes[self._known[adapter.digest][0]]

    def samples(self, build: Callable[[ParsedAdapter], HostAdapter]) -> dict[int, HostAdapter]:
        """One packed adapter of each rank."""
        return {rank: build(parse_adapter(*files)) for rank, files in self._ranks.items()}

    def block(self, widest: torch.Tensor) -> torch.Tensor:
        """Random numbers in a row, in which each adapter finds its window. widest: the pages of the
        largest adapter, whose dtype and pinning the block has."""
        device, elems = self.model.device, widest.numel() + self._count * STEP_ELEMS
        block = torch.empty(elems, dtype=widest.dtype, pin_memory=widest.is_pinned())
        generator = torch.Generator(device).manual_seed(1)
        for part in block.chunk(widest.shape[0]):  # the device is quicker with them than the host
            numbers = torch.empty(len(part), dtype=block.dtype, device=device)
            part.copy_(numbers.normal_(std=self._scale, generator=generator))
        return block

    def find(self, digest: str) -> tuple[int, int]:
        return self._known[digest]

    @property
    def num_known(self) -> int:
        return len(self._known)

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(self._known)


class WindowLoader:
    """A loader whose host memory has every adapter: each load ends when it is asked for."""

    host_bytes = _HOST_BYTES

    def __init__(
        self,
        windows: Windows,
        build: Callable[[ParsedAdapter], HostAdapter],
        on_result: Callable[[], None],
    ) -> None:
        """build: the product's, which packs what was parsed into pool layout."""
        self._windows = windows
        samples = windows.samples(build)
        self._layouts = {rank: each.layout for rank, each in samples.items()}
        widest = max(samples.values(), key=lambda each: each.pages.shape[1]).pages
        self._num_layers, _, self._page_elems = widest.shape
        self._block = windows.block(widest)
        self._on_result = on_result
        self._results: list[LoadResult] = []
        self._residency = Residency(frozenset(), frozenset())

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self._results.clear()

    def host_adapter(self, digest: str) -> HostAdapter:
        rank, index = self._windows.find(digest)
        layout = self._layouts[rank]
        shape = self._num_layers, layout.num_pages(self._page_elems), self._page_elems
        start = index * STEP_ELEMS
        window = self._block[start : start + math.prod(shape)]
        return HostAdapter(digest, layout, window.view(shape))

    def request(
        self, adapter: Adapter, *, priority: float = 0.0, speculative: bool = False
    ) -> None:
        self._results.append(LoadResult(adapter.digest, self.host_adapter(adapter.digest), None))
        self._on_result()

    def results(self) -> list[LoadResult]:
        ended, self._results = self._results, []
        return ended

    def cancel(self, digest: str) -> None:
        self._results = [each for each in self._results if each.digest != digest]

    def pin(self, digest: str) -> None:
        pass

    def unpin(self, digest: str) -> None:
        pass

    def discard(self, digest: str) -> None:
        pass

    def residency(self) -> Residency:
        if len(self._residency.host) != self._windows.num_known:
            self._residency = Residency(self._windows.digests, frozenset())
        return self._residency

    def recent_timings(self) -> tuple[LoadTimings, ...]:
        return ()


def _peft_bytes(model: RandomModel, rank: int, targets: tuple[str, ...]) -> tuple[bytes, bytes]:
    """adapter_config.json and adapter_model.safetensors, of zeros: only the layout is wanted."""
    shapes: Mapping[str, tuple[int, int]] = adapter_shapes(model.shape, rank, targets)
    tensors = {name: torch.zeros(size, dtype=model.dtype) for name, size in shapes.items()}
    return json.dumps(adapter_fields(rank, targets)).encode(), save(tensors)
