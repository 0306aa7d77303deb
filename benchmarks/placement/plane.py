"""A data plane in simulated time: the engine's own scheduler, pool and supply, without a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch

from dataplane.channel import Adapter, Sampling, Submit
from dataplane.cost_model import CostModel
from dataplane.engine.chunk import Chunk
from dataplane.engine.prefix_cache import PrefixCache
from dataplane.engine.scheduler import Scheduler
from dataplane.engine.sequence import Sequence
from dataplane.lora.layout import HostAdapter
from dataplane.lora.loader import LoadResult
from dataplane.lora.supply import AdapterSupply
from dataplane.pool.pool import PagePool
from storage.loader import Residency

PAGE_TOKENS = 16


@dataclass(frozen=True)
class PlaneCosts:
    """Seconds, pages and adapters; the same on every data plane of a run."""

    step_s: float = 0.020
    row_s: float = 0.0005  # of each decoding sequence
    prefill_step_s: float = 0.005
    prefill_token_s: float = 0.0002
    host_s: float = 0.002
    disk_s: float = 0.100
    source_s: float = 1.0
    num_pages: int = 1024
    adapter_pages: int = 8
    max_running: int = 32
    max_batch_tokens: int = 512
    num_host_adapters: int = 64

    def of_step(self, num_prefill: int, num_decode: int) -> float:
        prefill_s = self.prefill_step_s + self.prefill_token_s * num_prefill if num_prefill else 0.0
        return self.step_s + self.row_s * num_decode + prefill_s


class SimulatedTiers:
    """The loader: what was loaded once is on disk, the last ones used are in host memory."""

    def __init__(self, costs: PlaneCosts) -> None:
        self.now_s = 0.0
        self._costs = costs
        self._host: OrderedDict[str, None] = OrderedDict()
        self._disk: set[str] = set()
        self._pending: dict[str, float] = {}
        self._residency = Residency(frozenset(), frozenset())

    host_bytes = 1 << 30

    def request(
        self, adapter: Adapter, *, priority: float = 0.0, speculative: bool = False
    ) -> None:
        costs, digest = self._costs, adapter.digest
        took_s = costs.source_s
        if digest in self._host:
            took_s = costs.host_s
        elif digest in self._disk:
            took_s = costs.disk_s
        self._pending.setdefault(digest, self.now_s + took_s)

    def results(self) -> list[LoadResult]:
        ended = [digest for digest, at_s in self._pending.items() if at_s <= self.now_s]
        for digest in ended:
            del self._pending[digest]
            self._host[digest] = None
            self._host.move_to_end(digest)
            self._disk.add(digest)
            if len(self._host) > self._costs.num_host_adapters:
                self._host.popitem(last=False)
        if ended:
            self._residency = Residency(frozenset(self._host), frozenset(self._disk))
        return [LoadResult(digest, self._adapter(digest), None) for digest in ended]

    def cancel(self, digest: str) -> None:
        self._pending.pop(digest, None)

    def pin(self, digest: str) -> None:
        """Nothing is pinned here; nor do the next two."""

    unpin = discard = pin

    def residency(self) -> Residency:
        return self._residency

    @property
    def next_s(self) -> float | None:
        return min(self._pending.values(), default=None)

    def _adapter(self, digest: str) -> HostAdapter:
        pages = torch.zeros(1, self._costs.adapter_pages, 2)
        return HostAdapter(digest, cast(Any, None), pages, pages.numel() * 4)


@dataclass
class Served:
    """A request and what became of it. first_s: of its first token. told_no_s: of its refusal.
    num_cached: tokens of its prompt that were."""

    at_s: float
    first_s: float | None = None
    told_no_s: float | None = None
    expected_s: float | None = None
    num_cached: int = 0


class SimulatedPlane:
    def __init__(self, name: str, costs: PlaneCosts, *, prefix_cache: bool = False) -> None:
        self.name = name
        self.costs = costs
        self.next_s: float | None = None  # of its next event; None: it idles
        shape = SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=1)
        pool = PagePool(
            cast(Any, shape),
            page_tokens=PAGE_TOKENS,
            num_pages=costs.num_pages,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        pool.data = torch.zeros(1, costs.num_pages, 2)
        self._pool = pool
        self._tiers = SimulatedTiers(costs)
        self._measured = CostModel()
        self._supply = AdapterSupply(pool, self._tiers, self._measured)
        self.scheduler = Scheduler(
            pool,
            self._supply,
            PrefixCache(pool, self._measured, enabled=prefix_cache),
            self._measured,
            max_running=costs.max_running,
            max_batch_tokens=costs.max_batch_tokens,
            max_waiting=1_000_000,
            max_cluster_delay_s=0.25,
            priority_ageing_s=10.0,
        )
        self._chunks: list[Chunk] = []
        self._began_s = 0.0
        self._served: dict[Sequence, Served] = {}
        self._num_submitted = 0

    def submit(
        self,
        served: Served,
        prompt: list[int],
        output: int,
        adapter: str,
        now_s: float,
        slo_s: float,
    ) -> None:
        """slo_s: of the data plane; 0: none. All tokens of an answer are 0."""
        self._num_submitted += 1
        sequence = Sequence.of(
            Submit(
                handle=self._num_submitted,
                prompt=prompt,
                sampling=Sampling(max_tokens=output, ignore_eos=True),
                adapter=Adapter(adapter, "", adapter) if adapter else None,
                arrival_s=now_s,
                first_token_by_s=now_s + slo_s if slo_s else None,
            )
        )
        self._tiers.now_s = now_s
        self._served[sequence] = served
        self.scheduler.add(sequence, now_s)
        if not self._chunks:
            self.next_s = now_s

    def go_on(self) -> None:
        """Ends the step under way, if there is one, and begins the next, at `next_s`."""
        assert self.next_s is not None
        now_s = self._tiers.now_s = self.next_s
        self._end_step(now_s)
        chunks, failures = self.scheduler.schedule(now_s)
        for failure in failures:
            self._served.pop(failure.sequence).told_no_s = now_s
        self._chunks, self._began_s = chunks, now_s
        if chunks:
            self.scheduler.launched(chunks)
            self.next_s = now_s + self.costs.of_step(*_count(chunks))
        elif self.scheduler.has_work:
            soon = (self._tiers.next_s, self.scheduler.next_due_s, now_s + 0.05)
            self.next_s = max(min(each for each in soon if each is not None), now_s + 1e-4)
        else:
            self.next_s = None

    def tier(self, adapter: str) -> str:
        if self._supply.resident.get(adapter) is not None:
            return "pool"
        residency = self._tiers.residency()
        if adapter in residency.host:
            return "host"
        return "disk" if adapter in residency.disk else ""

    @property
    def num_available_pages(self) -> int:
        return self._pool.num_available

    def _end_step(self, now_s: float) -> None:
        chunks, self._chunks = self._chunks, []
        if not chunks:
            return
        num_prefill, num_decode = _count(chunks)
        self._measured.observe_step(
            now_s - self._began_s, num_prefill=num_prefill, num_decode=num_decode
        )
        self.scheduler.computed(chunks, now_s)
        for sequence in _sampling(chunks):
            sequence.tokens.append(0)
            if sequence.num_output == 1:
                self._served[sequence].first_s = now_s
                self._served[sequence].num_cached = sequence.num_cached
            if sequence.num_output >= sequence.sampling.max_tokens:
                self.scheduler.remove(sequence, now_s)
                del self._served[sequence]


def _count(chunks: list[Chunk]) -> tuple[int, int]:
    sizes = [chunk.num_tokens for chunk in chunks]
    num_decode = sizes.count(1)
    return sum(sizes) - num_decode, num_decode


def _sampling(chunks: list[Chunk]) -> Iterator[Sequence]:
    return (chunk.sequence for chunk in chunks if chunk.samples)
