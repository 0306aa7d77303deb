"""The real scheduler, pool, prefix cache and supply, without a model and in simulated time."""

from __future__ import annotations

from itertools import takewhile
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

STEP_S = 0.01
DECODE_S = 0.0005  # more for each decoding sequence
PREFILL_S = 0.0002  # more for each token in a prefill chunk


class SimulatedLoader:
    """Loads take `load_s`; digests in `failing` fail then; none ends while `hold`."""

    def __init__(self, simulation: Simulation, load_s: float) -> None:
        self._simulation = simulation
        self.load_s = load_s
        self.hold = False
        self.failing: set[str] = set()
        self.requests: list[str] = []
        self.cancelled: list[str] = []
        self.pinned: set[str] = set()
        self.host: set[str] = set()  # what residency tells
        self._pending: list[tuple[float, str]] = []

    host_bytes = 1 << 30

    def request(
        self, adapter: Adapter, *, priority: float = 0.0, speculative: bool = False
    ) -> None:
        self.requests.append(adapter.digest)
        self._pending.append((self._simulation.now_s + self.load_s, adapter.digest))

    def results(self) -> list[LoadResult]:
        if self.hold:
            return []
        ended = [each for each in self._pending if each[0] <= self._simulation.now_s]
        self._pending = [each for each in self._pending if each not in ended]
        return [self._result(digest) for _, digest in ended]

    def cancel(self, digest: str) -> None:
        self.cancelled.append(digest)
        self._pending = [each for each in self._pending if each[1] != digest]

    def pin(self, digest: str) -> None:
        self.pinned.add(digest)

    def unpin(self, digest: str) -> None:
        self.pinned.discard(digest)

    def discard(self, digest: str) -> None:
        self.unpin(digest)
        self.host.discard(digest)

    def residency(self) -> Residency:
        return Residency(frozenset(self.host), frozenset())

    @property
    def next_s(self) -> float | None:
        return min((at for at, _ in self._pending), default=None)

    def _result(self, digest: str) -> LoadResult:
        if digest in self.failing:
            return LoadResult(digest, None, OSError(digest))
        pages = torch.zeros(1, self._simulation.adapter_pages.get(digest, 3), 2)
        return LoadResult(digest, HostAdapter(digest, cast(Any, None), pages), None)


class Simulation:
    """`tokens[handle]`: what was generated. `served[tenant]`: (prompt, output) tokens computed for
    it. `started_s`, `ended_s`, `failed` by handle. Every step proves the pool's integrity."""

    def __init__(
        self,
        *,
        num_pages: int = 64,
        page_tokens: int = 4,
        max_running: int = 4,
        max_batch_tokens: int = 16,
        max_waiting: int = 10_000,
        max_cluster_delay_s: float = 0.2,
        priority_ageing_s: float = 1.0,
        load_s: float = 0.05,
        prefix_cache: bool = True,
        adapter_pages: dict[str, int] | None = None,
        max_drafts: int = 0,
        draft_s: float = DECODE_S,
        period: int = 0,
    ) -> None:
        """draft_s: that a step takes more for each draft. period: after which answers repeat
        themselves; 0: never."""
        self.draft_s, self.period = draft_s, period
        self.now_s = 100.0
        self.slowness = 1.0  # of the machine
        self.adapter_pages = adapter_pages or {}
        shape = SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=1)
        self.pool = PagePool(
            cast(Any, shape),
            page_tokens=page_tokens,
            num_pages=num_pages,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.pool.data = torch.zeros(1, num_pages, 2)
        self.costs = CostModel()
        self.loader = SimulatedLoader(self, load_s)
        self.supply = AdapterSupply(self.pool, self.loader, self.costs)
        self.prefixes = PrefixCache(self.pool, self.costs, enabled=prefix_cache)
        self.max_running, self.max_batch_tokens = max_running, max_batch_tokens
        self.scheduler = Scheduler(
            self.pool,
            self.supply,
            self.prefixes,
            self.costs,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            max_waiting=max_waiting,
            max_cluster_delay_s=max_cluster_delay_s,
            priority_ageing_s=priority_ageing_s,
            max_drafts=max_drafts,
        )
        self.live: dict[int, Sequence] = {}
        self.tokens: dict[int, list[int]] = {}
        self.served: dict[str, list[int]] = {}
        self.started_s: dict[int, float] = {}
        self.ended_s: dict[int, float] = {}
        self.failed: dict[int, Exception] = {}
        self.num_computed = 0  # tokens
        self.order: list[int] = []  # handles as they first ran

    def submit(
        self,
        handle: int,
        prompt: int | list[int] = 4,
        *,
        max_tokens: int = 4,
        adapter: str = "",
        active_from: int = 0,
        tenant: str = "t",
        priority: int = 0,
        first_token_in_s: float | None = None,
        deadline_in_s: float | None = None,
    ) -> None:
        """prompt: tokens, or a number of tokens that no other request shares."""
        if isinstance(prompt, int):
            prompt = [1_000_000 + handle * 1000 + at for at in range(prompt)]
        now_s = self.now_s
        sequence = Sequence.of(
            Submit(
                handle=handle,
                prompt=prompt,
                sampling=Sampling(max_tokens=max_tokens, ignore_eos=True),
                adapter=Adapter(adapter, "", adapter) if adapter else None,
                active_from=active_from,
                tenant=tenant,
                arrival_s=now_s,
                priority=priority,
                first_token_by_s=None if first_token_in_s is None else now_s + first_token_in_s,
                deadline_s=None if deadline_in_s is None else now_s + deadline_in_s,
            )
        )
        self.live[handle] = sequence
        try:
            self.scheduler.add(sequence, now_s)
        except Exception as error:
            self._end(handle)
            self.failed[handle] = error

    def abort(self, handle: int) -> None:
        if handle in self.live:
            self.scheduler.remove(self.live[handle], self.now_s)
            self._end(handle)

    def step(self) -> list[int]:
        """One step of simulated time. Returns the handles that computed something."""
        chunks, failures = self.scheduler.schedule(self.now_s)
        for sequence, error in ((each.sequence, each.error) for each in failures):
            assert not sequence.block_table and not sequence.shared
            self.failed[sequence.handle] = error
            self._end(sequence.handle)
        self._check(chunks)
        num_decode = sum(chunk.sure_end - chunk.start == 1 for chunk in chunks)
        num_drafts = sum(len(chunk.drafts) for chunk in chunks)
        num_prefill = sum(chunk.num_tokens for chunk in chunks) - num_decode - num_drafts
        for chunk in chunks:
            handle = chunk.sequence.handle
            if handle not in self.started_s:
                self.started_s[handle] = self.now_s
                self.order.append(handle)
                served = self.served.setdefault(chunk.sequence.tenant, [0, 0])
                served[0] += chunk.sequence.num_pending
        self.num_computed += num_decode + num_prefill + num_drafts
        seconds = STEP_S + DECODE_S * num_decode + PREFILL_S * num_prefill
        seconds += self.draft_s * num_drafts
        seconds *= self.slowness
        self.now_s += seconds
        if chunks:
            self.costs.observe_step(
                seconds, num_prefill=num_prefill, num_decode=num_decode, num_drafts=num_drafts
            )
        if chunks:
            self.scheduler.launched(chunks)
            self.scheduler.computed(chunks, self.now_s)
        for chunk in chunks:
            if chunk.samples:
                self._generate(chunk)
        self.check_integrity()
        return [chunk.sequence.handle for chunk in chunks]

    def run(self, max_steps: int = 20_000) -> None:
        """To the end, when nothing may be in use any more."""
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                break
            if self.scheduler.is_waiting_for_loads and self.loader.next_s is not None:
                self.now_s = max(self.now_s, self.loader.next_s)
            self.step()
        assert not self.scheduler.has_work and not self.live
        assert self.pool.num_available == self.pool.num_pages

    def check_integrity(self) -> None:
        claims = self.scheduler.claims()
        claims.update(self.supply.resident.claims())
        claims.update(self.prefixes.claims())
        self.pool.allocator.check_integrity(claims)
        self.prefixes.check_integrity(self.scheduler.held_blocks())
        self.supply.resident.check_integrity()
        users: dict[str, int] = {}
        for sequence in self.scheduler.running:
            users[sequence.queue_key] = users.get(sequence.queue_key, 0) + 1
        for resident in self.supply.resident:
            assert resident.users == users.get(resident.digest, 0)
        waiting = self.scheduler._waiting
        assert waiting.num_tokens == sum(len(each.tokens) for each in waiting)

    def _check(self, chunks: list[Any]) -> None:
        """What holds of every step."""
        handles = [chunk.sequence.handle for chunk in chunks]
        assert len(set(handles)) == len(handles)
        assert sum(chunk.num_tokens for chunk in chunks) <= self.max_batch_tokens
        assert len(self.scheduler.running) <= self.max_running
        keys = [chunk.sequence.queue_key for chunk in chunks]
        assert keys == sorted(keys)
        for chunk in chunks:
            sequence = chunk.sequence
            assert 0 < chunk.num_tokens - len(chunk.drafts) <= sequence.num_pending
            assert not chunk.drafts or (chunk.samples and sequence.num_pending == 1)
            assert chunk.sure_end + len(chunk.drafts) < sequence.max_length
            end = sequence.num_computed + chunk.num_tokens
            assert len(sequence.block_table) >= self.pool.blocks_for(end)
            if sequence.queue_key:
                resident = self.supply.resident.get(sequence.queue_key)
                assert resident is not None and resident.users

    def _generate(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        said = self._said(chunk)
        pairs = zip(chunk.drafts, said, strict=False)
        num_right = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        tokens = said[: num_right + 1]
        sequence.tokens += tokens
        self.served[sequence.tenant][1] += len(tokens)
        self.tokens.setdefault(sequence.handle, []).extend(tokens)
        if num_right:
            self.scheduler.accepted(sequence, num_right, self.now_s)
        if sequence.num_output == sequence.sampling.max_tokens:
            self.scheduler.remove(sequence, self.now_s)
            self._end(sequence.handle)

    def _said(self, chunk: Chunk) -> list[int]:
        """What the model says behind the chunk's last token and its drafts, if all are right."""
        sequence = chunk.sequence
        tokens = sequence.tokens[-1:]
        for length in range(len(sequence.tokens), len(sequence.tokens) + 1 + len(chunk.drafts)):
            at = length % self.period if self.period else length
            seed = sequence.handle if self.period else tokens[-1]
            tokens.append(hash((seed, at)) % 1000)
        return tokens[1:]

    def _end(self, handle: int) -> None:
        del self.live[handle]
        self.ended_s[handle] = self.now_s
