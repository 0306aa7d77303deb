"""What goes first when pages run out."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from dataplane.engine.prefix_cache import Lineage
from dataplane.pool.idle import IdlePages
from dataplane.pool.lazy_heap import LazyHeap
from dataplane.pool.worth import HALF_LIFE_S, UseCount, worth_key
from tests.helpers.scheduling import Simulation


def test_heap_agrees_with_sorting() -> None:
    generator = random.Random(3)
    heap: LazyHeap[int] = LazyHeap()
    expected: dict[int, tuple[float, int]] = {}
    for turn in range(5000):
        item = generator.randrange(40)
        match generator.randrange(4):
            case 0 | 1:
                key = float(generator.randrange(20))
                heap.push(item, key)
                expected[item] = key, turn
            case 2:
                heap.discard(item)
                expected.pop(item, None)
            case _ if expected:
                least = min(expected, key=lambda each: expected[each])
                assert heap.peek() == (expected[least][0], least)
                assert heap.pop() == least
                del expected[least]
        assert len(heap) == len(expected) and set(heap) == set(expected)
        in_order = sorted(expected, key=lambda each: expected[each])
        assert heap.first(5) == in_order[:5]
    assert len(heap._heap) <= 2 * 40 + 64


def test_use_counts_decay_and_their_order_does_not_change_with_time() -> None:
    often, late = UseCount(), UseCount()
    for _ in range(8):
        often.add(1000.0)
    assert often.at(1000.0) == pytest.approx(8)
    assert often.at(1000.0 + 2 * HALF_LIFE_S) == pytest.approx(2)
    late.add(1000.0 + 2 * HALF_LIFE_S)
    assert late.at(1000.0 + 2 * HALF_LIFE_S) == pytest.approx(1)
    for now_s in (2000.0, 9000.0):
        assert often.at(now_s) == pytest.approx(2 * late.at(now_s))
    assert worth_key(1.0, often, 1) > worth_key(1.0, late, 1)
    assert worth_key(1.0, often, 10) < worth_key(1.0, late, 1) < worth_key(3.0, late, 1)
    assert worth_key(1.0, UseCount(), 1) == -math.inf


def test_reclaiming_takes_the_least_worth_and_no_more_than_needed() -> None:
    idle = IdlePages()
    gone: list[str] = []

    class Thing:
        def __init__(self, name: str, pages: int) -> None:
            self.name, self.pages = name, pages

        def reclaim(self) -> int:
            gone.append(self.name)
            return self.pages

    things = {name: Thing(name, pages) for name, pages in zip("abcd", (1, 4, 2, 8), strict=True)}
    for worth, name in enumerate("cabd"):
        idle.offer(things[name], float(worth))
    idle.offer(things["c"], 9.0)  # used again
    idle.withdraw(things["a"])
    assert idle.reclaim(3) == 4 and gone == ["b"]
    assert idle.reclaim(9) == 10 and gone == ["b", "d", "c"]
    assert idle.reclaim(1) == 0


def test_blocks_and_adapters_compete_by_worth() -> None:
    """An adapter in steady use outlives cached prompts that nobody repeats, and a prompt in steady
    use outlives an adapter used once."""
    simulation = Simulation(num_pages=60, load_s=0.01, adapter_pages={"often": 8, "once": 8})
    prompt = list(range(33))
    handles = itertools.count()
    simulation.submit(next(handles), 4, adapter="once")
    simulation.run()
    for _ in range(12):
        simulation.submit(next(handles), 4, adapter="often")
        simulation.submit(next(handles), prompt)
        simulation.submit(next(handles), 30)  # never again
        simulation.run()
    assert simulation.loader.requests.count("often") == 1
    assert simulation.prefixes.num_blocks < 60 - 16  # much had to go
    simulation.pool.make_free(60 - 16)
    assert [each.digest for each in simulation.supply.resident] == ["often"]
    assert len(simulation.prefixes.match(Lineage(), prompt)) == 8


def test_an_adapter_that_costs_more_to_reload_stays_longer() -> None:
    simulation = Simulation(num_pages=60)
    for digest in ("dear", "cheap"):
        simulation.submit(len(digest), 4, adapter=digest)
        simulation.run()
    resident = simulation.supply.resident
    real, resident._reload_s = resident._reload_s, lambda digest, _: 9.0 * (digest == "dear") + 0.1
    for digest in ("dear", "cheap"):
        resident.wanted(digest, simulation.now_s)
    resident._reload_s = real
    simulation.pool.make_free(simulation.pool.num_pages - 5)
    assert [each.digest for each in resident] == ["dear"]
