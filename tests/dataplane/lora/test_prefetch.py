"""Prefetches: within bounds, displacing nothing of more worth, and counted."""

from __future__ import annotations

import pytest

from dataplane.channel import Adapter
from dataplane.lora import prefetch
from tests.helpers.scheduling import Simulation


def adapter(digest: str) -> Adapter:
    return Adapter(digest, "", digest)


def ask(simulation: Simulation, digest: str, tier: str = "pool", *, pinned: bool = False) -> None:
    assert tier in ("host", "pool")
    simulation.supply.prefetches.ask(adapter(digest), tier, simulation.now_s, pinned=pinned)


def settle(simulation: Simulation) -> None:
    """Until all that was asked for has come to an end."""
    while simulation.loader.next_s is not None:
        simulation.now_s = max(simulation.now_s, simulation.loader.next_s)
        simulation.step()
    while simulation.supply.is_copying:
        simulation.step()


def counters(simulation: Simulation) -> prefetch.PrefetchCounters:
    return simulation.supply.prefetches.report()


def test_a_prefetched_adapter_is_there_when_it_is_asked_for() -> None:
    simulation = Simulation()
    ask(simulation, "a")
    ask(simulation, "a")
    settle(simulation)
    assert simulation.supply.resident.get("a") is not None
    assert not simulation.supply.is_busy
    simulation.submit(1, adapter="a")
    simulation.step()
    assert 1 in simulation.started_s
    simulation.submit(2, adapter="a")
    simulation.run()
    assert simulation.loader.requests == ["a"]
    assert counters(simulation) == prefetch.PrefetchCounters(asked=2, hits=1)


def test_a_prefetch_to_host_memory_stays_out_of_the_pool() -> None:
    simulation = Simulation()
    ask(simulation, "a", "host")
    simulation.loader.host.add("a")
    settle(simulation)
    assert simulation.supply.resident.get("a") is None
    ask(simulation, "a", "host")
    assert simulation.loader.requests == ["a"], "it is there"
    simulation.submit(1, adapter="a")
    simulation.run()
    assert counters(simulation).hits == 1


def test_a_request_that_comes_meanwhile_joins_and_is_counted_late() -> None:
    simulation = Simulation(load_s=1.0)
    ask(simulation, "a")
    simulation.now_s += 0.4
    simulation.submit(1, adapter="a")
    simulation.run()
    assert len(simulation.tokens[1]) == 4
    found = counters(simulation)
    assert (found.late, found.hits, found.wasted_bytes) == (1, 0, 0)
    assert found.late_s == pytest.approx(0.6, abs=0.05)


def test_a_prefetch_goes_on_when_the_request_that_joined_it_leaves() -> None:
    simulation = Simulation(load_s=1.0)
    ask(simulation, "a")
    simulation.submit(1, adapter="a")
    simulation.abort(1)
    assert simulation.loader.cancelled == []
    settle(simulation)
    assert simulation.supply.resident.get("a") is not None


def test_few_load_at_a_time_and_the_rest_queues() -> None:
    simulation = Simulation(num_pages=200)
    for name in "abcdef":
        ask(simulation, name)
    assert simulation.loader.requests == ["a", "b"]
    settle(simulation)
    assert simulation.loader.requests == list("abcdef")


def test_unused_prefetches_are_bounded_and_pins_exempt() -> None:
    simulation = Simulation(num_pages=40)  # of which a quarter: three adapters and a bit
    for name in "abcdefgh":
        ask(simulation, name)
    settle(simulation)
    assert simulation.loader.requests == list("abcd")
    simulation.supply.pin(adapter("p"), "pool", simulation.now_s)
    settle(simulation)
    assert simulation.loader.requests == [*"abcd", "p"]
    simulation.supply.unpin("p")
    for handle, name in enumerate("abcd"):
        simulation.submit(handle, adapter=name)
    simulation.run()
    settle(simulation)
    assert set(simulation.loader.requests) == {*"abcdefgh", "p"}, "use made room for more"
    assert counters(simulation).hits == 4


def test_it_displaces_neither_running_work_nor_what_is_worth_more() -> None:
    simulation = Simulation(num_pages=12, load_s=0.0, prefix_cache=False)
    simulation.submit(1, 4, adapter="a", max_tokens=2)
    simulation.run()
    simulation.submit(2, 16, adapter="b", max_tokens=5)
    simulation.step()
    simulation.step()
    assert {each.digest for each in simulation.supply.resident} == {"a", "b"}
    before = simulation.pool.num_available
    simulation.adapter_pages["guess"] = 3
    ask(simulation, "guess")
    while 2 not in simulation.ended_s:
        simulation.step()
    assert before < 12
    assert simulation.supply.resident.get("b") is not None
    assert simulation.supply.resident.get("a") is not None, "a was used, the other is a guess"


def test_waste_failure_and_refusal_are_counted() -> None:
    simulation = Simulation(num_pages=16, adapter_pages={"huge": 9, "a": 3})
    ask(simulation, "huge")
    simulation.loader.failing.add("bad")
    ask(simulation, "bad")
    settle(simulation)
    found = counters(simulation)
    assert (found.refused, found.failed) == (1, 1)
    ask(simulation, "a")
    settle(simulation)
    wasted = counters(simulation).wasted_bytes
    assert simulation.pool.make_free(16)
    assert counters(simulation).wasted_bytes - wasted == 3 * 2 * 4
    simulation.submit(1, adapter="a")
    simulation.run()
    assert counters(simulation).hits == 0


def test_pinned_adapters_take_at_most_half_of_the_pool() -> None:
    simulation = Simulation(num_pages=16, adapter_pages=dict.fromkeys("abc", 4))
    for name in "abc":
        simulation.supply.pin(adapter(name), "pool", simulation.now_s)
    settle(simulation)
    assert simulation.supply.resident.num_pinned_pages == 8
    assert simulation.loader.pinned == set("abc"), "host memory keeps all of them"
    assert counters(simulation).refused == 1
    assert not simulation.pool.make_free(9)
    for name in "abc":
        simulation.supply.unpin(name)
    assert simulation.pool.make_free(16)
    assert simulation.loader.pinned == set()


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_MAX_QUEUED", 3)
    simulation = Simulation(load_s=1.0)
    for n in range(8):
        ask(simulation, f"a{n}")
    assert counters(simulation).refused == 3
