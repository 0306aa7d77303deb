"""Which tokens the next step computes. Iteration-level; pure but for the pool it allocates from.

Decode first, then the prefill of running sequences in chunks, then waiting requests. Each adapter
has its own queue, so a request whose adapter is still loading holds up nobody else's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.engine.sequence import Sequence
from dataplane.errors import DataPlaneError, DeadlineError, PoolTooSmallError, QueueFullError
from dataplane.lora.supply import AdapterSupply
from dataplane.pool.pool import PagePool


@dataclass(frozen=True)
class Chunk:
    """The next `num_tokens` pending tokens of a running sequence."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True)
class Failure:
    sequence: Sequence
    error: Exception


class Scheduler:
    """Owns the waiting queues and the running batch; every page a sequence holds passes here."""

    def __init__(
        self,
        pool: PagePool,
        supply: AdapterSupply,
        *,
        max_running: int,
        max_batch_tokens: int,
        max_waiting: int,
    ) -> None:
        assert max_batch_tokens >= max_running
        self._pool = pool
        self._supply = supply
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting = max_waiting
        self._queues: dict[str, deque[Sequence]] = {}
        self.running: list[Sequence] = []  # oldest admission first; the last is preempted first

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def has_work(self) -> bool:
        return bool(self.running or self._queues)

    def add(self, sequence: Sequence) -> None:
        """Raises: QueueFullError; PoolTooSmallError when it could never fit, even alone."""
        if self.num_waiting >= self._max_waiting:
            raise QueueFullError(
                "QUEUE_FULL",
                f"{self._max_waiting} requests are waiting; try again later",
                {"max_waiting": str(self._max_waiting)},
            )
        self._check_fits(sequence, 0)
        self._queues.setdefault(sequence.queue_key, deque()).append(sequence)
        if sequence.adapter:
            self._supply.want(sequence.adapter)

    def remove(self, sequence: Sequence, now_s: float) -> None:
        """Forgets a sequence, running or waiting, and frees what it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence, now_s)
            return
        queue = self._queues.get(sequence.queue_key)
        if queue and sequence in queue:
            queue.remove(sequence)
            self._drop_empty_queues()

    def schedule(self, now_s: float) -> tuple[list[Chunk], list[Failure]]:
        """The chunks of the next step, those of one adapter adjacent, and the requests that have
        ended with an error instead. A failed sequence holds nothing any more."""
        failures = self._expired(now_s)
        failures += self._failed_loads()
        chunks: dict[int, Chunk] = {}
        self._continue_running(chunks, now_s)
        failures += self._admit(chunks, now_s)
        self._drop_empty_queues()
        self._supply.drop_unwanted(set(self._queues))
        ordered = sorted(chunks.values(), key=lambda chunk: chunk.sequence.queue_key)
        return ordered, failures

    def waiting(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue

    def claims(self) -> dict[str, list[int]]:
        """Owner -> pages, for the integrity check."""
        return {each.owner: each.block_table for each in self.running if each.block_table}

    def _continue_running(self, chunks: dict[int, Chunk], now_s: float) -> None:
        decoding = [each for each in self.running if each.num_pending == 1]
        prefilling = [each for each in self.running if each.num_pending > 1]
        budget = self._max_batch_tokens
        for sequence in (*decoding, *prefilling):
            num_tokens = min(sequence.num_pending, budget)
            # It may have been preempted a moment ago to let an older one grow.
            if num_tokens and sequence in self.running:
                self._schedule_chunk(sequence, num_tokens, chunks, now_s)
            budget = self._max_batch_tokens - sum(c.num_tokens for c in chunks.values())

    def _schedule_chunk(
        self, sequence: Sequence, num_tokens: int, chunks: dict[int, Chunk], now_s: float
    ) -> None:
        needed = self._pool.blocks_for(sequence.num_computed + num_tokens)
        while len(sequence.block_table) < needed:
            page = self._pool.take_block(sequence.owner)
            if page is not None:
                sequence.block_table.append(page)
            elif not self._supply.resident.evict_idle(1):
                victim = self.running[-1]
                self._preempt(victim, now_s)
                chunks.pop(victim.handle, None)
                if victim is sequence:
                    return
        if sequence.scheduled_s is None:
            sequence.scheduled_s = now_s
        chunks[sequence.handle] = Chunk(sequence, num_tokens)

    def _admit(self, chunks: dict[int, Chunk], now_s: float) -> list[Failure]:
        """Oldest first over the queues whose adapter is at hand. When the oldest lacks pages,
        nobody passes it, so that large requests do not starve."""
        failures: list[Failure] = []
        blocked: set[str] = set()  # queues whose adapter is not here
        budget = self._max_batch_tokens - sum(c.num_tokens for c in chunks.values())
        while budget > 0 and len(self.running) < self._max_running:
            heads = [q[0] for key, q in self._queues.items() if q and key not in blocked]
            if not heads:
                break
            sequence = min(heads, key=lambda each: (each.arrival_s, each.handle))
            missing = self._adapter_pages_missing(sequence)
            if missing is None:
                blocked.add(sequence.queue_key)
                continue
            if sequence.adapter and sequence.adapter_ready_s is None:
                sequence.adapter_ready_s = now_s
            error = self._never_fits(sequence)
            if error:
                self._queues[sequence.queue_key].popleft()
                failures.append(Failure(sequence, error))
                continue
            if not self._make_room(sequence, missing):
                break
            self._queues[sequence.queue_key].popleft()
            if sequence.adapter:
                resident = self._supply.acquire(sequence.adapter.digest, now_s)
                assert resident is not None  # room was made
            self.running.append(sequence)
            num_tokens = min(sequence.num_pending, budget)
            self._schedule_chunk(sequence, num_tokens, chunks, now_s)
            budget -= num_tokens
        return failures

    def _adapter_pages_missing(self, sequence: Sequence) -> int | None:
        if sequence.adapter is None:
            return 0
        missing = self._supply.pages_missing(sequence.adapter.digest)
        if missing is None:
            self._supply.want(sequence.adapter)
        return missing

    def _make_room(self, sequence: Sequence, adapter_pages: int) -> bool:
        """Evicts idle adapters until the sequence's tokens and its adapter fit. False when only
        preemption could make that much room: running work goes first."""
        needed = self._pool.blocks_for(len(sequence.tokens)) + adapter_pages
        short = needed - self._pool.allocator.num_free
        if short <= 0:
            return True
        keep = sequence.adapter.digest if sequence.adapter else None
        kept = self._supply.resident.get(keep) if keep else None
        idle = self._supply.resident.num_idle_pages
        if kept and not kept.users:
            idle -= len(kept.page_ids)
        if idle < short:
            return False
        self._supply.resident.evict_idle(short, keep)
        return True

    def _never_fits(self, sequence: Sequence) -> DataPlaneError | None:
        pages = self._supply.size_pages(sequence.adapter.digest) if sequence.adapter else 0
        try:
            self._check_fits(sequence, pages)
        except PoolTooSmallError as error:
            return error
        return None

    def _check_fits(self, sequence: Sequence, adapter_pages: int) -> None:
        # The last token is never computed, so its key needs no place.
        needed = self._pool.blocks_for(sequence.max_length - 1) + adapter_pages
        if needed > self._pool.num_pages:
            raise PoolTooSmallError(
                "POOL_TOO_SMALL",
                f"prompt of {sequence.num_prompt} tokens, max_tokens"
                f" {sequence.sampling.max_tokens} and its adapter take {needed} pages; the pool"
                f" has {self._pool.num_pages}: lower max_tokens, or start the data plane with a"
                " larger --pool-bytes",
                {"needed_pages": str(needed), "num_pages": str(self._pool.num_pages)},
            )

    def _preempt(self, sequence: Sequence, now_s: float) -> None:
        """Back to the front of its queue; it will be recomputed, tokens so far included."""
        self.running.remove(sequence)
        self._release(sequence, now_s)
        self._queues.setdefault(sequence.queue_key, deque()).appendleft(sequence)

    def _release(self, sequence: Sequence, now_s: float) -> None:
        self._pool.allocator.give_back(sequence.block_table, sequence.owner)
        sequence.block_table = []
        sequence.num_computed = 0
        if sequence.adapter:
            self._supply.resident.release(sequence.adapter.digest, now_s)

    def _expired(self, now_s: float) -> list[Failure]:
        late = [
            each
            for each in (*self.running, *self.waiting())
            if each.deadline_s is not None and each.deadline_s <= now_s
        ]
        for sequence in late:
            self.remove(sequence, now_s)
        return [Failure(each, _deadline_error(each, now_s)) for each in late]

    def _failed_loads(self) -> list[Failure]:
        failures: list[Failure] = []
        for digest, error in self._supply.poll():
            failures += [Failure(each, error) for each in self._queues.pop(digest, ())]
        return failures

    def _drop_empty_queues(self) -> None:
        for key in [key for key, queue in self._queues.items() if not queue]:
            del self._queues[key]


def _deadline_error(sequence: Sequence, now_s: float) -> DeadlineError:
    return DeadlineError(
        "DEADLINE_EXCEEDED",
        f"the deadline passed {now_s - (sequence.deadline_s or now_s):.3f} s ago with"
        f" {sequence.num_output} of {sequence.sampling.max_tokens} tokens generated",
        {"num_generated_tokens": str(sequence.num_output)},
    )
