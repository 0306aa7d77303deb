"""Adapters on their way to requests: in simulated time, with the real scheduler."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
import torch

from dataplane.channel import Adapter
from dataplane.errors import AdapterUnloadedError, PoolTooSmallError
from dataplane.lora import copier, supply
from dataplane.lora.copier import CopyRate
from dataplane.lora.layout import HostAdapter
from tests.helpers.scheduling import Simulation


def adapter(digest: str) -> Adapter:
    return Adapter(digest, "", digest)


def test_a_load_that_nobody_wants_any_more_is_cancelled() -> None:
    simulation = Simulation(load_s=10.0)
    for handle in (1, 2):
        simulation.submit(handle, adapter="a")
    simulation.submit(3, adapter="b")
    simulation.step()
    simulation.abort(1)
    assert simulation.loader.cancelled == []
    simulation.abort(2)
    assert simulation.loader.cancelled == ["a"]
    simulation.submit(4, adapter="a")
    assert simulation.loader.requests == ["a", "b", "a"]
    simulation.run()
    assert set(simulation.tokens) == {3, 4}


def test_a_result_that_crossed_its_cancellation_is_no_harm() -> None:
    simulation = Simulation(load_s=0.05)
    simulation.submit(1, adapter="a")
    pending = list(simulation.loader._pending)
    simulation.abort(1)
    simulation.loader._pending = pending
    simulation.submit(2)
    simulation.run()
    assert list(simulation.tokens) == [2]
    assert simulation.supply.resident.get("a") is None


def test_what_arrived_and_waits_is_bounded_by_the_pool() -> None:
    # Each takes half of the pool; only one sequence can run.
    simulation = Simulation(
        num_pages=20, max_running=1, adapter_pages={f"a{n}": 8 for n in range(12)}
    )
    bound = simulation.pool.data.numel() * 4
    for handle in range(12):
        simulation.submit(handle, adapter=f"a{handle}", max_tokens=2)
    most = 0
    while simulation.scheduler.has_work:
        if simulation.scheduler.is_waiting_for_loads and simulation.loader.next_s:
            simulation.now_s = max(simulation.now_s, simulation.loader.next_s)
        simulation.step()
        held = sum(each.nbytes for each in simulation.supply._arrived)
        most = max(most, held)
    assert len(simulation.tokens) == 12
    assert 0 < most <= bound
    assert simulation.pool.num_available == simulation.pool.num_pages


def test_queued_loads_start_by_priority() -> None:
    simulation = Simulation(num_pages=20, max_running=1, adapter_pages=dict.fromkeys("abcd", 16))
    simulation.submit(1, adapter="a", max_tokens=8)
    simulation.now_s += 1.0
    simulation.step()
    simulation.submit(2, adapter="b", max_tokens=2)
    simulation.now_s += 1.0
    simulation.step()
    assert [each.digest for each in simulation.supply._arrived] == ["b"]
    simulation.supply.want(adapter("c"), simulation.now_s, priority=0)
    simulation.supply.want(adapter("d"), simulation.now_s, priority=3)
    assert simulation.loader.requests == ["a", "b", "c", "d"], "their size is not known yet"
    simulation.now_s += 1.0
    simulation.supply.poll(simulation.now_s)
    assert set(simulation.supply._queued) == {"c", "d"}, "no room beside b: asked for again later"
    simulation.supply.drop("b")
    simulation.supply.poll(simulation.now_s)
    assert simulation.loader.requests[4] == "d"


def test_a_cold_request_waits_for_its_copy_while_others_decode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copier, "_SLICE_BYTES", 1)
    monkeypatch.setattr(supply, "_COPY_SHARE", 0.0)
    monkeypatch.setattr(supply, "_MIN_COPY_S", 0.0)
    simulation = Simulation(num_pages=64, load_s=0.0, adapter_pages={"big": 10})
    simulation.submit(1, max_tokens=60)
    for _ in range(3):
        simulation.step()
    simulation.submit(2, adapter="big", max_tokens=2)
    steps = 0
    while 2 not in simulation.started_s:
        before = len(simulation.tokens[1])
        simulation.step()
        assert len(simulation.tokens[1]) == before + 1, "the other one is not held up"
        steps += 1
    assert 5 <= steps <= 12, "a page a step"
    simulation.run()
    assert len(simulation.tokens[2]) == 2


def test_a_cold_request_starts_with_layer_0_where_nobody_is_held_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copier, "_SLICE_BYTES", 1)
    monkeypatch.setattr(supply, "_MAX_COPY_S", 0.0)
    simulation = Simulation(num_pages=64, load_s=0.0, adapter_pages={"big": 1})
    simulation.submit(1, adapter="big", max_tokens=2)
    simulation.step()
    assert 1 in simulation.started_s


def test_aborting_a_cold_request_gives_its_copy_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "_SLICE_BYTES", 1)
    monkeypatch.setattr(supply, "_MIN_COPY_S", 0.0)
    monkeypatch.setattr(supply, "_COPY_SHARE", 0.0)
    simulation = Simulation(num_pages=64, load_s=0.0, adapter_pages={"big": 10})
    simulation.submit(1, max_tokens=30)
    for _ in range(3):
        simulation.step()
    simulation.submit(2, adapter="big")
    for _ in range(3):
        simulation.step()
    assert simulation.supply.resident.get("big") is not None
    simulation.abort(2)
    assert simulation.supply.resident.get("big") is None
    assert not simulation.supply.is_copying
    simulation.run()


def test_adapters_are_placed_before_their_requests_are_admitted() -> None:
    simulation = Simulation(num_pages=64, max_running=1, load_s=0.0)
    simulation.submit(1, max_tokens=20)
    simulation.step()
    simulation.submit(2, adapter="a", max_tokens=1)
    simulation.step()
    simulation.step()
    assert 2 not in simulation.started_s
    assert simulation.supply.resident.get("a") is not None
    simulation.run()


def test_unload_lets_running_requests_finish_and_ends_them_when_time_is_over() -> None:
    simulation = Simulation(num_pages=64, load_s=0.0)
    simulation.submit(1, adapter="a", max_tokens=3)
    simulation.submit(2, adapter="a", max_tokens=100)
    simulation.step()
    simulation.step()
    until_s = simulation.now_s + 10 * 0.02
    simulation.loader.host.add("a")
    simulation.supply.unload("a", until_s)
    assert simulation.loader.host == set(), "host memory has let go of it"
    simulation.submit(3, adapter="a", max_tokens=2)
    simulation.step()
    assert 3 not in simulation.started_s, "later requests do not prolong it"
    while simulation.now_s < until_s:
        simulation.step()
        assert 2 not in simulation.failed
    simulation.step()
    assert isinstance(simulation.failed[2], AdapterUnloadedError)
    assert simulation.failed[2].retry_after_s
    assert len(simulation.tokens[1]) == 3
    simulation.run()
    assert len(simulation.tokens[3]) == 2, "it was loaded anew"
    assert simulation.loader.requests == ["a", "a"]


def test_random_unloads_and_pins_leave_nothing_behind() -> None:
    for seed in range(5):
        chance = random.Random(seed)
        simulation = Simulation(num_pages=40, load_s=0.03)
        for handle in range(60):
            simulation.submit(
                handle,
                chance.randrange(1, 12),
                adapter=chance.choice(["", "a", "b", "c", "d"]),
                max_tokens=chance.randrange(1, 10),
            )
            name = chance.choice("abcd")
            match chance.randrange(6):
                case 0:
                    simulation.supply.unload(name, simulation.now_s + chance.random() * 0.1)
                case 1:
                    simulation.supply.pin(adapter(name), "pool", simulation.now_s)
                case 2:
                    simulation.supply.unpin(name)
                case 3:
                    simulation.supply.prefetches.ask(
                        adapter(name), "pool", simulation.now_s, pinned=False
                    )
            simulation.step()
        for name in "abcd":
            simulation.supply.unpin(name)
        simulation.run()
        allowed = {AdapterUnloadedError}
        assert {type(each) for each in simulation.failed.values()} <= allowed


def test_a_request_that_pins_leave_no_room_for_is_refused_and_holds_up_nobody() -> None:
    simulation = Simulation(num_pages=20, load_s=0.0, adapter_pages={"pinned": 10, "a": 3})
    simulation.supply.pin(adapter("pinned"), "pool", simulation.now_s)
    for _ in range(3):
        simulation.step()
    assert simulation.supply.resident.num_pinned_pages == 10
    simulation.submit(1, 30, adapter="a", max_tokens=2)  # 8 pages and 3: too many by one
    simulation.submit(2, 30, adapter="pinned", max_tokens=2)
    simulation.submit(3, 30, max_tokens=2)
    while simulation.scheduler.has_work:
        simulation.step()
    assert isinstance(simulation.failed[1], PoolTooSmallError)
    assert set(simulation.tokens) == {2, 3}


def test_what_was_pinned_beyond_the_limit_can_be_evicted() -> None:
    simulation = Simulation(num_pages=20, load_s=0.0, adapter_pages={"a": 6, "b": 6})
    for name in "ab":
        simulation.supply.pin(adapter(name), "pool", simulation.now_s)
    for _ in range(4):
        simulation.step()
    simulation.submit(1, adapter="b", max_tokens=2)
    while simulation.scheduler.has_work:
        simulation.step()
    assert simulation.supply.resident.num_pinned_pages == 6
    assert simulation.pool.num_available == 14
    assert simulation.pool.make_free(14)


@pytest.mark.parametrize(("step_s", "layers_before_start"), [(None, 1), (0.01, 2), (1e-6, 4)])
def test_it_starts_when_the_rest_would_hold_up_nobody_for_long(
    monkeypatch: pytest.MonkeyPatch, step_s: float | None, layers_before_start: int
) -> None:
    monkeypatch.setattr(copier, "_SLICE_BYTES", 1)  # a page; a layer of the adapter is two
    monkeypatch.setattr(CopyRate, "observe", lambda *_: None)
    for name in ("_COPY_SHARE", "_MIN_COPY_S", "_MAX_COPY_S"):
        monkeypatch.setattr(supply, name, 0.0)
    monkeypatch.setattr(supply, "_START_SHARE", 0.1)
    simulation = Simulation(num_pages=8)
    simulation.pool.data = torch.zeros(4, 8, 2)
    tracked = supply.AdapterSupply(simulation.pool, simulation.loader, simulation.costs)
    page_bytes = 2 * 4
    # The rest of two layers, four pages, takes a tenth of 0.01 s.
    tracked.resident.copier.rate = CopyRate(4 * page_bytes / 0.001)
    host = HostAdapter("a", cast(Any, None), torch.ones(4, 2, 2))
    assert tracked.resident.install(host)
    resident = tracked.resident.acquire("a")
    for _ in range(20):
        assert tracked.may_start("a") == (resident.copy.num_layers_in >= layers_before_start)
        tracked.advance(step_s)
    assert tracked.may_start("a") and not resident.is_copying
