"""An estimate that was once far too high does not shut everybody out for ever."""

from __future__ import annotations

import itertools

import pytest

from dataplane.cost_model import CostModel
from dataplane.engine.probes import INTERVAL_S, Probes
from dataplane.errors import HopelessError
from tests.helpers.scheduling import Simulation


def _came_and_went(simulation: Simulation, handle: int, adapter: str = "") -> bool:
    """Whether a request with a second to its first token got it."""
    simulation.submit(handle, 30, max_tokens=4, adapter=adapter, first_token_in_s=1.0)
    simulation.step()
    simulation.run()
    simulation.now_s += 0.5
    assert (handle in simulation.tokens) != isinstance(simulation.failed.get(handle), HopelessError)
    return handle in simulation.tokens


def test_one_stalled_step_refuses_requests_for_a_while_only() -> None:
    simulation = Simulation()
    assert _came_and_went(simulation, 0)
    simulation.slowness = 1000.0
    simulation.submit(1, 30, max_tokens=1)
    simulation.run()
    simulation.slowness = 1.0
    came_s = simulation.now_s
    served = [_came_and_went(simulation, handle) for handle in range(2, 60)]
    assert not served[0]  # it did look hopeless
    first = served.index(True)
    assert simulation.ended_s[2 + first] - came_s < INTERVAL_S + 2.0
    assert all(served[first:])  # what was measured then is what counts


def test_a_source_that_was_slow_once_is_tried_again() -> None:
    simulation = Simulation(load_s=300.0, adapter_pages={f"a{i}": 20 for i in range(60)})
    simulation.submit(0, 8, adapter="a0")
    simulation.run()
    simulation.loader.load_s = 0.05
    served = [_came_and_went(simulation, handle, f"a{handle}") for handle in range(1, 59)]
    assert not served[0]
    assert all(served[served.index(True) :])


def test_what_a_load_is_thought_to_take_leaves_out_how_long_it_was_queued() -> None:
    # Two adapters fill the pool, so the others' loads queue until requests end.
    names = "abcdef"
    simulation = Simulation(
        num_pages=40, load_s=0.05, adapter_pages=dict.fromkeys(names, 18), max_running=2
    )
    for handle in range(60):
        simulation.submit(handle, 8, max_tokens=30, adapter=names[handle % 6])
    simulation.run()
    assert simulation.costs.load_s("source") < 0.1


def test_a_probe_ends_when_its_own_time_is_over() -> None:
    simulation = Simulation(load_s=100.0)
    simulation.submit(0, 8, adapter="a")
    simulation.run()
    handle = 1
    while not any(each.is_probe for each in simulation.live.values()):
        simulation.submit(handle, 8, adapter=f"b{handle}", first_token_in_s=3.0)
        simulation.step()
        simulation.now_s += 0.5
        handle += 1
    (probe,) = [each for each in simulation.live.values() if each.is_probe]
    assert simulation.scheduler.next_due_s == pytest.approx(probe.first_token_by_s)
    assert probe.first_token_by_s is not None
    simulation.now_s = probe.first_token_by_s + 0.01
    simulation.step()
    assert isinstance(simulation.failed[probe.handle], HopelessError)
    assert simulation.loader.cancelled[-1] == probe.queue_key


def test_costs_that_are_measured_all_the_time_are_believed() -> None:
    costs = CostModel()
    probes = Probes(costs)
    for second in range(100):
        costs.observe_step(1.0, num_prefill=10, num_decode=0)
        assert not probes.may_try("prefill", float(second))
    tries = [second for second in range(100, 200) if probes.may_try("prefill", float(second))]
    assert tries[0] - 99 >= INTERVAL_S
    assert all(b - a >= INTERVAL_S for a, b in itertools.pairwise(tries))
    assert len(tries) == 20
    # Another cost is another doubt.
    assert not probes.may_try("disk", 200.0)
