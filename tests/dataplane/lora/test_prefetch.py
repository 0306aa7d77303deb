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


def wait(simulation: Simulation, seconds: float) -> None:
    """Steps now and then, as an idle engine does while it is busy with adapters."""
    until_s = simulation.now_s + seconds
    while simulation.now_s < until_s:
        simulation.now_s += 0.5
        simulation.step()
        settle(simulation)


def waiting(simulation: Simulation) -> dict[str, str]:
    return {pin.digest: pin.reason for pin in simulation.supply.waiting_pins()}


def pinned(simulation: Simulation) -> set[str]:
    return {each.digest for each in simulation.supply.resident if each.pinned}


def test_a_pin_without_room_is_tried_again_when_there_is_some() -> None:
    simulation = Simulation(num_pages=16, adapter_pages=dict.fromkeys("abc", 4))
    for name in "abc":
        simulation.supply.pin(adapter(name), "pool", simulation.now_s)
    settle(simulation)
    assert pinned(simulation) == {"a", "b"}
    assert waiting(simulation) == {"c": "PIN_POOL_FULL"}
    assert simulation.supply.is_busy
    wait(simulation, 60)
    assert simulation.loader.requests == list("abc"), "looking for room loads nothing"
    simulation.supply.unpin("a")
    wait(simulation, 2)
    assert pinned(simulation) == {"b", "c"} and waiting(simulation) == {}
    assert simulation.loader.requests == list("abcc")
    assert not simulation.supply.is_busy


def test_a_pin_waits_for_running_work() -> None:
    simulation = Simulation(num_pages=16, adapter_pages={"p": 6}, load_s=0.0)
    simulation.submit(1, 44, max_tokens=8)  # eleven pages and more
    while not simulation.tokens.get(1):
        simulation.step()
    simulation.supply.pin(adapter("p"), "pool", simulation.now_s)
    for _ in range(2):
        simulation.step()
    assert waiting(simulation) == {"p": "PIN_POOL_FULL"}
    simulation.run()
    wait(simulation, 2)
    assert pinned(simulation) == {"p"}


def test_a_pin_displaces_what_nobody_uses_now_whatever_it_is_worth() -> None:
    simulation = Simulation(num_pages=16, adapter_pages={"p": 6, "often": 12}, load_s=0.0)
    for handle in range(9):
        simulation.submit(handle, adapter="often")
        simulation.run()
    ask(simulation, "p")
    settle(simulation)
    assert simulation.supply.resident.get("often") is not None
    simulation.supply.pin(adapter("p"), "pool", simulation.now_s)
    settle(simulation)
    assert pinned(simulation) == {"p"} and waiting(simulation) == {}


def test_a_resident_adapter_that_may_not_be_pinned_yet_waits_too() -> None:
    simulation = Simulation(num_pages=16, adapter_pages=dict.fromkeys("ab", 5), load_s=0.0)
    simulation.supply.pin(adapter("a"), "pool", simulation.now_s)
    settle(simulation)
    simulation.submit(1, adapter="b")
    while 1 not in simulation.ended_s:
        simulation.step()
    simulation.supply.pin(adapter("b"), "pool", simulation.now_s)
    assert waiting(simulation) == {"b": "PIN_POOL_FULL"}
    simulation.supply.unload("a", simulation.now_s)
    wait(simulation, 2)
    assert pinned(simulation) == {"b"} and waiting(simulation) == {}


def test_a_pin_that_cannot_be_loaded_is_tried_again_with_growing_pauses() -> None:
    simulation = Simulation(load_s=0.0)
    simulation.loader.failing.add("a")
    simulation.supply.pin(adapter("a"), "pool", simulation.now_s)
    settle(simulation)
    assert waiting(simulation) == {"a": "INTERNAL"}
    wait(simulation, 4)
    assert simulation.loader.requests == ["a"]
    wait(simulation, 600)
    assert 5 <= len(simulation.loader.requests) <= 9
    simulation.loader.failing.clear()
    wait(simulation, 301)
    assert pinned(simulation) == {"a"} and waiting(simulation) == {}


def test_a_pin_to_host_memory_that_is_full_waits() -> None:
    simulation = Simulation(load_s=0.0)
    simulation.supply.pin(adapter("a"), "host", simulation.now_s)
    settle(simulation)
    assert waiting(simulation) == {"a": "PIN_HOST_FULL"}
    simulation.loader.host.add("a")
    wait(simulation, 6)
    assert waiting(simulation) == {} and not simulation.supply.is_busy


@pytest.mark.parametrize("how", ["unpin", "unload"])
def test_a_waiting_pin_can_be_taken_back(how: str) -> None:
    simulation = Simulation(num_pages=16, adapter_pages={"a": 9}, load_s=0.0)
    simulation.supply.pin(adapter("a"), "pool", simulation.now_s)
    settle(simulation)
    assert waiting(simulation)
    if how == "unpin":
        simulation.supply.unpin("a")
    else:
        simulation.supply.unload("a", simulation.now_s)
    assert waiting(simulation) == {} and not simulation.supply.is_busy


def test_unpinned_on_its_way_it_is_no_pin_that_waits() -> None:
    simulation = Simulation(num_pages=16, adapter_pages={"a": 9}, load_s=1.0)
    simulation.supply.pin(adapter("a"), "pool", simulation.now_s)
    simulation.supply.unpin("a")
    settle(simulation)
    assert waiting(simulation) == {} and pinned(simulation) == set()


def test_the_pool_counts_hits_misses_evictions_and_copies() -> None:
    simulation = Simulation(num_pages=16)
    for handle, name in enumerate("aab"):
        simulation.submit(handle, adapter=name)
        simulation.run()
    tier = simulation.supply.pool_tier()
    assert (tier.num_hits, tier.num_misses, tier.num_evictions, tier.num_adapters) == (1, 2, 0, 2)
    assert tier.size_bytes == 2 * 3 * 2 * 4 and tier.max_bytes == 16 * 2 * 4
    copier = simulation.supply.resident.copier
    simulation.step()
    assert copier.num_copied == 2 and copier.copied_s > 0
    assert 0 < simulation.supply.resident.copy_s("a") < copier.copied_s
    assert simulation.supply.resident.copy_s("z") == 0
    assert simulation.pool.make_free(16)
    assert simulation.supply.pool_tier().num_evictions == 2
    simulation.submit(9, adapter="a")
    simulation.run()
    simulation.supply.unload("a", simulation.now_s)
    assert simulation.supply.pool_tier().num_evictions == 2, "it was told to go"
