"""Which tokens the next step computes. Iteration-level; pure but for the pool it allocates from.

Decode first, then the prefill of running sequences in chunks, then waiting requests in the order
of `waiting`. When the next one lacks pages, nobody passes it, so that large requests do not starve.
Pages come from what is free, then from what the pool is least worth, and at last from the running
sequence with the least claim, which is recomputed later.

A step may be scheduled while the one before it is in flight: launched, and its tokens not read yet.
That takes no token's value, only their number.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from dataplane.cost_model import CostModel
from dataplane.engine.chunk import MAX_SCORED, Chunk, Failure
from dataplane.engine.counters import Counters
from dataplane.engine.drafting import Drafting
from dataplane.engine.fairness import OUTPUT_WEIGHT, PROMPT_WEIGHT
from dataplane.engine.fit import check_fits
from dataplane.engine.growth import Growth
from dataplane.engine.holdings import Holdings
from dataplane.engine.outlook import Outlooks
from dataplane.engine.prefix_cache import CachedBlock, PrefixCache
from dataplane.engine.refusals import queue_full
from dataplane.engine.room import Room
from dataplane.engine.sequence import Sequence
from dataplane.engine.triage import Triage
from dataplane.engine.waiting import Waiting
from dataplane.load_reports import Outlook

if TYPE_CHECKING:
    from dataplane.lora.supply import AdapterSupply
    from dataplane.pool.pool import PagePool


class Scheduler:
    """Owns the waiting queues and the running batch; every page a sequence holds passes here."""

    def __init__(
        self,
        pool: PagePool,
        supply: AdapterSupply,
        prefixes: PrefixCache,
        costs: CostModel,
        *,
        max_running: int,
        max_batch_tokens: int,
        max_waiting: int,
        max_cluster_delay_s: float,
        priority_ageing_s: float,
        max_drafts: int = 0,
    ) -> None:
        """max_drafts: of a sequence in a step; see `drafting`."""
        assert max_batch_tokens >= max_running
        self._pool = pool
        self._supply = supply
        self._prefixes = prefixes
        self._costs = costs
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting = max_waiting
        self._ageing_s = priority_ageing_s
        self._waiting = Waiting(
            self._affinity, max_cluster_delay_s=max_cluster_delay_s, ageing_s=priority_ageing_s
        )
        self.counters = Counters()
        self._triage = Triage(
            supply,
            prefixes,
            costs,
            self._waiting,
            self.counters,
            page_tokens=pool.page_tokens,
            max_batch_tokens=max_batch_tokens,
        )
        self._holdings = Holdings(pool, supply.resident, prefixes)
        self._growth = Growth(pool.page_tokens)
        self._drafting = Drafting(pool, costs, max_drafts) if max_drafts else None
        self._room = Room(pool, supply, prefixes, self._growth)
        self._outlooks = Outlooks(
            pool,
            supply,
            costs,
            self._waiting,
            self._triage.objectives,
            self._growth,
            prefixes,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
        )
        self.running: list[Sequence] = []  # oldest admission first
        self._starved = False  # room can only be made by preemption, which cannot be now

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self.running or self._waiting)

    @property
    def num_decoding(self) -> int:
        """Running sequences that have their prompt computed, or launched."""
        return sum(each.num_pending == 1 for each in self.running)

    @property
    def awaits_drafts(self) -> bool:
        """Some sequence is in no next step until the one with its drafts has been read."""
        return any(each.num_drafts for each in self.running)

    @property
    def is_waiting_for_loads(self) -> bool:
        """Nothing can be computed until a load ends or a time is over."""
        return not self.running and bool(self._waiting) and self._waiting.all_parked

    @property
    def next_due_s(self) -> float | None:
        """When a deadline or an objective is to be looked at; None without any."""
        return self._triage.objectives.next_due_s

    def add(self, sequence: Sequence, now_s: float) -> None:
        """Raises: QueueFullError; PoolTooSmallError when it could never fit, even alone."""
        if self.num_waiting >= self._max_waiting:
            raise queue_full(self._max_waiting)
        check_fits(sequence, 0, self._pool)
        self._waiting.add(sequence, now_s)
        if sequence.adapter:
            self._supply.used(sequence.adapter.digest, now_s)
            self._want(sequence, now_s)
        self._triage.watch(sequence, now_s)

    def remove(self, sequence: Sequence, now_s: float, *, ruined: bool = False) -> None:
        """Forgets a sequence, running or waiting, and frees what it holds. ruined: nobody is to use
        what it computed."""
        self._triage.objectives.end(sequence)
        if sequence in self._waiting:
            self._leave_queue(sequence)
        elif sequence in self.running:
            self.running.remove(sequence)
            self._growth.ended(sequence)
            self._holdings.release(sequence, now_s, ruined=ruined)

    def schedule(self, now_s: float) -> tuple[list[Chunk], list[Failure]]:
        """The chunks of the next step, those of one adapter adjacent, and the requests that have
        ended with an error instead. A failed sequence holds nothing any more.

        No chunks, either, when only preemption could make room and steps are in flight: it needs
        the tokens that these sample, and who ends by them may leave room enough."""
        failures = self._take_loads(now_s)
        failures += self._out_of_time(now_s)
        failures += self._unloaded(now_s)
        self._supply.advance(self._step_to_spare_s())
        chunks: dict[Sequence, Chunk] = {}
        self._starved = False
        self._continue_running(chunks, now_s)
        if self._starved:
            return [], failures
        failures += self._admit(chunks, now_s)
        if self._drafting is not None and not self.awaits_drafts:
            self._drafting.extend(chunks, self._max_batch_tokens, len(self.running))
        return sorted(chunks.values(), key=lambda chunk: chunk.rank_in_step), failures

    def launched(self, chunks: Seq[Chunk]) -> None:
        """A step over `chunks`, as just scheduled, was given to the device."""
        self._holdings.launched(chunk.sequence for chunk in chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.sure_end
            sequence.num_unread += chunk.samples
            sequence.num_drafts = len(chunk.drafts)
            self.counters.num_drafted += len(chunk.drafts)

    def computed(self, chunks: Seq[Chunk], now_s: float) -> None:
        """The oldest launched step, over `chunks`, has run: their keys and values are in their
        pages, and full blocks can be shared, but for those of drafts. Call it before the tokens
        that it sampled are appended, and `accepted` behind them. What it did for a sequence that
        has ended meanwhile counts for nothing."""
        self._holdings.collected(now_s)
        for chunk in chunks:
            sequence = chunk.sequence
            if chunk.drafts:
                sequence.num_drafts = 0
            if not sequence.block_table:
                continue
            self._holdings.share(sequence, chunk.sure_end, now_s)
            if chunk.samples:
                sequence.num_unread -= 1
                self._waiting.charge(sequence, OUTPUT_WEIGHT)

    def accepted(self, sequence: Sequence, num_drafts: int, now_s: float) -> None:
        """So many of its drafts are tokens: they, and the one behind them, have been appended. What
        was computed of others is computed over by the next step that it is part of."""
        sequence.num_computed += num_drafts
        self.counters.num_accepted += num_drafts
        self._waiting.charge(sequence, OUTPUT_WEIGHT * num_drafts)
        self._holdings.share(sequence, sequence.num_computed, now_s)

    def outlook(self, now_s: float) -> Outlook | None:
        """What a first token takes here, of a moment ago; None until steps were measured."""
        return self._outlooks.recent(self.running, now_s)

    def claims(self) -> dict[str, list[int]]:
        """Owner -> pages, for the integrity check; cached blocks are the cache's."""
        return self._holdings.claims(self.running)

    def held_blocks(self) -> list[list[CachedBlock]]:
        return self._holdings.held_blocks(self.running)

    # What happens while they wait.

    def _want(self, sequence: Sequence, now_s: float) -> None:
        """Asks for the adapter of a waiting request unless it is at hand."""
        assert sequence.adapter is not None
        digest = sequence.adapter.digest
        if self._supply.pages_missing(digest) is None:
            self._supply.want(sequence.adapter, now_s, sequence.priority)
            self._waiting.park(digest)
        elif sequence.adapter_ready_s is None:
            sequence.adapter_ready_s = now_s

    def _leave_queue(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        if sequence.adapter and not self._waiting.of_adapter(sequence.adapter.digest):
            self._supply.drop(sequence.adapter.digest)

    def _take_loads(self, now_s: float) -> list[Failure]:
        failures: list[Failure] = []
        loads = self._supply.poll(now_s)
        for digest in loads.arrived:
            waiting = self._waiting.of_adapter(digest)
            if not waiting:
                self._supply.drop(digest)
            for sequence in waiting:
                if sequence.adapter_ready_s is None:
                    sequence.adapter_ready_s = now_s
            self._waiting.unpark(digest)
        for adapter, error in loads.failed:
            for each in self._waiting.of_adapter(adapter.digest):
                # Who has the same content of another source, or another token, is tried next.
                if each.adapter is not None and each.adapter.origin == adapter.origin:
                    failures.append(Failure(each, error))
        for failure in failures:
            self.remove(failure.sequence, now_s)
        for adapter, _ in loads.failed:
            self._waiting.unpark(adapter.digest)
        return failures

    def _out_of_time(self, now_s: float) -> list[Failure]:
        failures = self._triage.out_of_time(now_s)
        for failure in failures:
            self.remove(failure.sequence, now_s)
        return failures

    def _unloaded(self, now_s: float) -> list[Failure]:
        failures = [
            Failure(sequence, error)
            for digest, error in self._supply.overdue(now_s)
            for sequence in self.running
            if sequence.queue_key == digest
        ]
        for failure in failures:
            self.remove(failure.sequence, now_s)
        return failures

    # The next step.

    def _step_to_spare_s(self) -> float | None:
        """How long a step takes that copies into the pool would hold up; None: there is none."""
        num_others = sum(self._has_adapter(each) for each in self.running)
        return self._costs.step_s(num_others) if num_others else None

    def _has_adapter(self, sequence: Sequence) -> bool:
        """Whether its adapter is in the pool, or so far on the way that it can run."""
        return not sequence.adapter or self._supply.may_start(sequence.adapter.digest)

    def _continue_running(self, chunks: dict[Sequence, Chunk], now_s: float) -> None:
        ready = [each for each in self.running if self._may_go_on(each)]
        decoding = [each for each in ready if each.num_pending == 1]
        prefilling = [each for each in ready if each.num_pending > 1]
        budget = self._max_batch_tokens
        for sequence in (*decoding, *prefilling):
            # It may have been preempted a moment ago to let another one grow.
            if budget and sequence in self.running and not self._starved:
                budget -= self._schedule_chunk(sequence, budget, chunks, now_s)

    def _may_go_on(self, sequence: Sequence) -> bool:
        return not (sequence.is_spent or sequence.num_drafts) and self._has_adapter(sequence)

    def _schedule_chunk(
        self, sequence: Sequence, budget: int, chunks: dict[Sequence, Chunk], now_s: float
    ) -> int:
        """Schedules up to `budget` of its pending tokens. Returns by how much the step grew:
        less than that, even below zero, when others had to leave it, or when it got none."""
        freed = 0
        num_tokens = min(sequence.num_pending, budget)
        if sequence.wants_scores:
            num_tokens = min(
                num_tokens, MAX_SCORED - sum(each.num_scored for each in chunks.values())
            )
            if not num_tokens:
                return 0
        needed = self._pool.blocks_for(sequence.num_computed + num_tokens)
        while len(sequence.block_table) < needed:
            if self._pool.make_free(1):
                page = self._pool.take_block(sequence.owner)
                assert page is not None
                sequence.block_table.append(page)
                continue
            if self._holdings.in_flight:
                self._starved = True
                return 0
            victim = max(self.running, key=self._expendability)
            self._preempt(victim, now_s)
            chunk = chunks.pop(victim, None)
            freed += chunk.num_tokens if chunk else 0
            if victim is sequence:
                return -freed
        if sequence.scheduled_s is None:
            sequence.scheduled_s = now_s
        start, samples = sequence.num_computed, num_tokens == sequence.num_pending
        num_scored = sequence.num_scored(start, start + num_tokens)
        chunks[sequence] = Chunk(sequence, start, num_tokens, samples, num_scored)
        return num_tokens - freed

    def _expendability(self, sequence: Sequence) -> tuple[float, int]:
        """The newest goes first, where one priority is worth `priority_ageing_s` of age. The order
        never changes, so the first in it always gets on."""
        return sequence.arrival_s - sequence.priority * self._ageing_s, sequence.handle

    def _admit(self, chunks: dict[Sequence, Chunk], now_s: float) -> list[Failure]:
        failures: list[Failure] = []
        budget = self._max_batch_tokens - sum(c.num_tokens for c in chunks.values())
        overload = self._triage.is_overload(now_s)
        while budget > 0 and len(self.running) < self._max_running:
            pick = self._waiting.next(now_s, newest_first=overload)
            if pick is None:
                break
            sequence = pick.sequence
            if sequence.adapter:
                self._want(sequence, now_s)
                if self._supply.pages_missing(sequence.adapter.digest) is None:
                    continue  # it is parked now
            cached = sequence.computed_in(self._prefixes)
            num_cached = len(cached) * self._pool.page_tokens
            error = self._supply.unlike(sequence.adapter) if sequence.adapter else None
            error = error or self._room.never_fits(sequence)
            error = error or self._triage.hopeless(sequence, now_s, num_cached)
            if error:
                failures.append(Failure(sequence, error))
                self.remove(sequence, now_s)
                continue
            if not self._room.take(sequence, cached, self.running, now_s):
                break
            self._waiting.passed_over(pick, now_s)
            self._start(sequence, cached)
            if self._has_adapter(sequence):
                budget -= self._schedule_chunk(sequence, budget, chunks, now_s)
        return failures

    def _start(self, sequence: Sequence, cached: list[CachedBlock]) -> None:
        self._waiting.remove(sequence)
        self._triage.objectives.start(sequence)
        sequence.shared = cached
        sequence.block_table = [block.page for block in cached]
        sequence.num_computed = len(cached) * self._pool.page_tokens
        self.running.append(sequence)
        if sequence.scheduled_s is None:  # recomputing after preemption is not its fault
            sequence.num_cached = sequence.num_computed
            self.counters.num_prompt_tokens += len(sequence.tokens)
            self.counters.num_prefix_hit_tokens += sequence.num_cached
            self._waiting.charge(sequence, PROMPT_WEIGHT * sequence.num_pending)

    def _preempt(self, sequence: Sequence, now_s: float) -> None:
        """Back to the queue, before all that did not run yet. It will be recomputed, tokens so far
        included, but for what is still cached then."""
        self.running.remove(sequence)
        self._holdings.release(sequence, now_s, wanted=True)
        self._waiting.resume(sequence)
        self.counters.num_preemptions += 1
        self._triage.watch(sequence, now_s)

    def _affinity(self, key: str) -> int:
        """For clustering: 2 in the running batch or no adapter, 1 in the pool, 0 elsewhere."""
        if not key:
            return 2
        resident = self._supply.resident.get(key)
        if resident is None:
            return 0
        return 2 if resident.users else 1
