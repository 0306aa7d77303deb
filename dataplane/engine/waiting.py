"""Who of the waiting is next. Pure bookkeeping.

In this order:

1. Preempted sequences, oldest first: their work was begun.
2. The highest level. A request's level is its priority, and one more for each `ageing_s` that it
   waited, up to the highest priority that waits: after (difference x ageing_s) it competes with the
   higher ones as an equal.
3. The tenant that was served least (`fairness`), then in it the adapter that was served least.
4. The oldest request; under overload, among those with an objective, the newest, since it is the
   oldest that will miss theirs (S-LoRA, section 6). One without objective is not passed for that.

Clustering may change the third: of one tenant's adapters, one in the running batch is preferred to
one that is merely in the pool, and that to one that must be copied there first. A request that was
passed over in this way first `max_cluster_delay_s` ago is passed over no more; who has an objective
for its first token can be for a fifth of that time instead, up to four times as long. Nothing idles
for it: who is passed over is admitted in the same step if there is room.

Adapters that are not here are parked: their requests are skipped until `unpark`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dataplane.engine.fairness import LeastServed, VirtualTokens
from dataplane.engine.sequence import Sequence
from dataplane.pool.lazy_heap import LazyHeap

_LOOK_AHEAD = 16  # adapters of a tenant that clustering looks at
_CLUSTER_SHARE = 0.2  # of the time to its first token, that a request may be passed over
_MAX_CLUSTER_DELAYS = 4


class Pick(NamedTuple):
    sequence: Sequence
    passed: tuple[Sequence, ...]  # would have come first, but for clustering


class Waiting:
    """All waiting requests. affinity: of an adapter, higher is preferred by clustering."""

    def __init__(
        self,
        affinity: Callable[[str], int],
        *,
        max_cluster_delay_s: float,
        ageing_s: float,
    ) -> None:
        self._affinity = affinity
        self._max_cluster_delay_s = max_cluster_delay_s
        self._ageing_s = ageing_s
        self.tenants = VirtualTokens()
        self._adapters: dict[str, VirtualTokens] = {}  # by tenant
        self._levels: dict[int, _Level] = {}
        self._num_of_priority: dict[int, int] = {}
        self._places: dict[Sequence, _Place] = {}
        self._by_adapter: dict[str, dict[Sequence, None]] = {}
        self.num_tokens = 0  # of all that wait
        self._parked: set[str] = set()
        self._resuming: LazyHeap[Sequence] = LazyHeap()  # but the parked
        self._ageing: LazyHeap[Sequence] = LazyHeap()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._places

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._places)

    @property
    def all_parked(self) -> bool:
        """Nobody waits but for adapters."""
        return all(key in self._parked for key in self._by_adapter)

    def by_level(self) -> list[tuple[int | None, Sequence]]:
        """All that wait with their levels, the highest first, those of one level as they came;
        preempted ones, which have none, before all."""
        places = [(place.level, sequence) for sequence, place in self._places.items()]
        return sorted(places, key=lambda each: -math.inf if each[0] is None else -each[0])

    def of_adapter(self, key: str) -> list[Sequence]:
        return list(self._by_adapter.get(key, ()))

    def add(self, sequence: Sequence, now_s: float) -> None:
        self._adapters_of(sequence.tenant).enter(sequence.queue_key)
        self.tenants.enter(sequence.tenant)
        self._enter(sequence)
        priority = sequence.priority
        self._num_of_priority[priority] = self._num_of_priority.get(priority, 0) + 1
        self._enqueue(sequence, priority)
        self._age_next(sequence, now_s)

    def resume(self, sequence: Sequence) -> None:
        """Takes a preempted sequence back."""
        self._places[sequence] = _Place(None)
        self._enter(sequence)
        if sequence.queue_key not in self._parked:
            self._resuming.push(sequence, _age_key(sequence))

    def remove(self, sequence: Sequence) -> None:
        place = self._places.pop(sequence)
        self.num_tokens -= len(sequence.tokens)
        same = self._by_adapter[sequence.queue_key]
        del same[sequence]
        if not same:
            del self._by_adapter[sequence.queue_key]
            self._parked.discard(sequence.queue_key)
        if place.level is None:
            self._resuming.discard(sequence)
            return
        self._ageing.discard(sequence)
        self._dequeue(sequence, place.level)
        self._num_of_priority[sequence.priority] -= 1
        if not self._num_of_priority[sequence.priority]:
            del self._num_of_priority[sequence.priority]
            self._lower()
        self._adapters_of(sequence.tenant).leave(sequence.queue_key)
        self.tenants.leave(sequence.tenant)
        self._forget_tenants()

    def charge(self, sequence: Sequence, tokens: float) -> None:
        """Counts service of so many weighted tokens."""
        self.tenants.charge(sequence.tenant, tokens)
        self._adapters_of(sequence.tenant).charge(sequence.queue_key, tokens)

    def park(self, key: str) -> None:
        """Skips an adapter's requests until `unpark`."""
        self._parked.add(key)
        for sequence in self._by_adapter.get(key, ()):
            self._resuming.discard(sequence)

    def unpark(self, key: str) -> None:
        self._parked.discard(key)
        for sequence in self._by_adapter.get(key, ()):
            level = self._places[sequence].level
            if level is None:
                self._resuming.push(sequence, _age_key(sequence))
            else:
                self._levels[level].list(sequence.tenant, key, self._adapters)

    def next(self, now_s: float, *, newest_first: bool = False) -> Pick | None:
        """Who is to be admitted now; stays in the queue. newest_first: there is overload."""
        resuming = self._resuming.peek()
        if resuming:
            return Pick(resuming[1], ())
        self._age(now_s)
        for number in sorted(self._levels, reverse=True):
            level = self._levels[number]
            while (tenant := level.tenants.least()) is not None:
                adapters = level.adapters[tenant]
                key = adapters.least()
                if key is None:
                    level.unlist(tenant)
                elif key in self._parked:
                    adapters.discard(key)
                else:
                    return self._cluster(level, tenant, key, now_s, newest_first)
        return None

    def passed_over(self, pick: Pick, now_s: float) -> None:
        """`pick` was admitted before those it passed: their patience begins to run out."""
        for sequence in pick.passed:
            place = self._places.get(sequence)
            if place and place.passed_over_s is None:
                place.passed_over_s = now_s

    def _cluster(
        self, level: _Level, tenant: str, key: str, now_s: float, newest_first: bool
    ) -> Pick:
        best = first = level.queues[tenant, key].head(newest_first)
        highest = self._affinity(key)
        if highest == 2 or self._is_patient_no_more(first, now_s):
            return Pick(first, ())
        seen: list[Sequence] = [first]
        passed: tuple[Sequence, ...] = ()
        for other in level.adapters[tenant].first(_LOOK_AHEAD)[1:]:
            if other in self._parked:
                continue
            head = level.queues[tenant, other].head(newest_first)
            affinity = self._affinity(other)
            if affinity > highest:
                best, highest, passed = head, affinity, tuple(seen)
            if highest == 2 or self._is_patient_no_more(head, now_s):
                break
            seen.append(head)
        return Pick(best, passed)

    def _is_patient_no_more(self, sequence: Sequence, now_s: float) -> bool:
        since_s = self._places[sequence].passed_over_s
        return since_s is not None and now_s - since_s >= self._patience_s(sequence)

    def _patience_s(self, sequence: Sequence) -> float:
        if sequence.first_token_by_s is None:
            return self._max_cluster_delay_s
        share_s = _CLUSTER_SHARE * (sequence.first_token_by_s - sequence.arrival_s)
        return min(share_s, _MAX_CLUSTER_DELAYS * self._max_cluster_delay_s)

    def _enter(self, sequence: Sequence) -> None:
        self.num_tokens += len(sequence.tokens)
        self._by_adapter.setdefault(sequence.queue_key, {})[sequence] = None

    def _enqueue(self, sequence: Sequence, number: int) -> None:
        level = self._levels.get(number)
        if level is None:
            level = self._levels[number] = _Level(LeastServed(self.tenants))
        key = sequence.tenant, sequence.queue_key
        place = self._places.setdefault(sequence, _Place(number))
        place.level = number
        level.queues.setdefault(key, _Queue()).push(sequence)
        if sequence.queue_key not in self._parked:
            level.list(*key, self._adapters)

    def _dequeue(self, sequence: Sequence, number: int) -> None:
        level = self._levels[number]
        queue = level.queues[sequence.tenant, sequence.queue_key]
        queue.discard(sequence)
        if not queue:
            level.drop(sequence.tenant, sequence.queue_key)
            if not level.queues:
                del self._levels[number]

    def _age(self, now_s: float) -> None:
        """Lifts those whose time has come."""
        while (entry := self._ageing.peek()) is not None and entry[0] <= now_s:
            sequence = self._ageing.pop()
            number = self._places[sequence].level
            assert number is not None
            aged = sequence.priority + int((now_s - sequence.arrival_s) / self._ageing_s)
            target = min(aged, max(self._num_of_priority))
            if target > number:
                self._move(sequence, number, target)
            self._age_next(sequence, now_s)

    def _lower(self) -> None:
        """The highest priority has left: those that were lifted to it are equals of the rest, whom
        they must not hold up."""
        highest = max(self._num_of_priority, default=0)
        for number in [each for each in self._levels if each > highest]:
            for queue in list(self._levels[number].queues.values()):
                for sequence in list(queue):
                    self._move(sequence, number, highest)

    def _move(self, sequence: Sequence, number: int, target: int) -> None:
        self._dequeue(sequence, number)
        self._enqueue(sequence, target)

    def _age_next(self, sequence: Sequence, now_s: float) -> None:
        done = max(0, int((now_s - sequence.arrival_s) / self._ageing_s))
        due_s = sequence.arrival_s + (done + 1) * self._ageing_s
        self._ageing.push(sequence, max(due_s, now_s + self._ageing_s / 1000))

    def _adapters_of(self, tenant: str) -> VirtualTokens:
        adapters = self._adapters.get(tenant)
        if adapters is None:
            adapters = self._adapters[tenant] = VirtualTokens()
        return adapters

    def _forget_tenants(self) -> None:
        known = self.tenants.keys()
        if len(self._adapters) > 2 * len(known) + 64:
            self._adapters = {each: self._adapters_of(each) for each in known}


@dataclass
class _Place:
    """Where a sequence waits: its level, None for a preempted one."""

    level: int | None
    passed_over_s: float | None = None


@dataclass
class _Level:
    """The queues of one level. `tenants` and `adapters` list who may be next; parked ones leave
    the lists when they are met."""

    tenants: LeastServed
    adapters: dict[str, LeastServed] = field(default_factory=dict[str, LeastServed])
    queues: dict[tuple[str, str], _Queue] = field(default_factory=dict[tuple[str, str], "_Queue"])

    def list(self, tenant: str, key: str, adapters: Mapping[str, VirtualTokens]) -> None:
        self.tenants.add(tenant)
        self.adapters.setdefault(tenant, LeastServed(adapters[tenant])).add(key)

    def unlist(self, tenant: str) -> None:
        self.tenants.discard(tenant)
        self.adapters.pop(tenant, None)

    def drop(self, tenant: str, key: str) -> None:
        del self.queues[tenant, key]
        adapters = self.adapters.get(tenant)
        if adapters is not None:
            adapters.discard(key)
            if not adapters:
                self.unlist(tenant)


class _Queue:
    """Requests of one tenant for one adapter at one level."""

    def __init__(self) -> None:
        self._oldest: LazyHeap[Sequence] = LazyHeap()
        self._newest: LazyHeap[Sequence] = LazyHeap()  # of those with an objective

    def __len__(self) -> int:
        return len(self._oldest)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._oldest)

    def push(self, sequence: Sequence) -> None:
        self._oldest.push(sequence, _age_key(sequence))
        if sequence.has_objective:
            self._newest.push(sequence, (-sequence.arrival_s, -sequence.handle))

    def discard(self, sequence: Sequence) -> None:
        self._oldest.discard(sequence)
        self._newest.discard(sequence)

    def head(self, newest_first: bool) -> Sequence:
        oldest = self._oldest.peek()
        assert oldest is not None
        if newest_first and oldest[1].has_objective:
            newest = self._newest.peek()
            assert newest is not None
            return newest[1]
        return oldest[1]


def _age_key(sequence: Sequence) -> tuple[float, int]:
    return sequence.arrival_s, sequence.handle
