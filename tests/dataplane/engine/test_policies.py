"""What the scheduler promises whatever arrives: real code, simulated time, no model."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.errors import DeadlineError, HopelessError
from tests.helpers.scheduling import PREFILL_S, STEP_S, Simulation

REQUESTS = st.fixed_dictionaries(
    {
        "prompt": st.one_of(st.integers(1, 40), st.integers(1, 40).map(lambda n: list(range(n)))),
        "max_tokens": st.integers(1, 20),
        "adapter": st.sampled_from(["", "a", "b", "c", "bad"]),
        "tenant": st.sampled_from(["x", "y"]),
        "priority": st.integers(-2, 2),
        "first_token_in_s": st.one_of(st.none(), st.floats(0.0, 0.5)),
        "deadline_in_s": st.one_of(st.none(), st.none(), st.floats(0.0, 1.0)),
    }
)
EVENTS = st.lists(
    st.one_of(
        REQUESTS, REQUESTS, st.integers(1, 4), st.just("abort"), st.sampled_from(["hold", "go"])
    ),
    max_size=40,
)


@settings(max_examples=120, deadline=None)
@given(
    events=EVENTS,
    num_pages=st.integers(24, 48),
    max_running=st.integers(1, 5),
    prefix_cache=st.booleans(),
)
def test_any_traffic_ends_and_leaves_nothing_behind(
    events: list[object], num_pages: int, max_running: int, prefix_cache: bool
) -> None:
    simulation = Simulation(
        num_pages=num_pages,
        max_running=max_running,
        prefix_cache=prefix_cache,
        adapter_pages={"b": 6, "c": 9},
    )
    simulation.loader.failing.add("bad")
    requests: dict[int, dict[str, object]] = {}
    for event in events:
        match event:
            case dict():
                requests[len(requests)] = event
                simulation.submit(len(requests) - 1, **event)
            case int():
                for _ in range(event):
                    simulation.step()
            case "abort":
                simulation.abort(len(requests) // 2)
                requests.get(len(requests) // 2, {})["aborted"] = True
            case _:
                simulation.loader.hold = event == "hold"
    simulation.loader.hold = False
    simulation.run()
    for handle, request in requests.items():
        failure = simulation.failed.get(handle)
        if failure is None and "aborted" not in request:
            assert len(simulation.tokens[handle]) == request["max_tokens"]
        if request["first_token_in_s"] is None and request["deadline_in_s"] is None:
            assert not isinstance(failure, DeadlineError | HopelessError)
    simulation.pool.make_free(num_pages)
    assert simulation.pool.allocator.num_free == num_pages


@settings(max_examples=60, deadline=None)
@given(
    objectives=st.lists(
        st.tuples(st.integers(1, 60), st.floats(0.01, 0.6), st.booleans()), min_size=5, max_size=40
    )
)
def test_nothing_hopeless_is_ever_started(objectives: list[tuple[int, float, bool]]) -> None:
    simulation = Simulation(num_pages=200, max_running=2, max_batch_tokens=64)
    simulation.submit(1000, 30, max_tokens=5)  # what there is to measure
    simulation.submit(1001, 60, max_tokens=5)
    simulation.run()
    latest: dict[int, float] = {}
    for handle, (prompt, seconds, whole) in enumerate(objectives):
        # No step is cheaper than its tokens.
        needed_s = PREFILL_S * prompt + (7 * STEP_S if whole else 0.0)
        latest[handle] = simulation.now_s + seconds - needed_s
        if whole:
            simulation.submit(handle, prompt, max_tokens=8, deadline_in_s=seconds)
        else:
            simulation.submit(handle, prompt, max_tokens=8, first_token_in_s=seconds)
        simulation.step()
    simulation.run()
    for handle in latest:
        if handle in simulation.started_s:
            assert simulation.started_s[handle] <= latest[handle] + 1e-9
        else:
            error = simulation.failed[handle]
            assert isinstance(error, HopelessError | DeadlineError)


def test_a_hopeless_request_is_failed_at_once_and_says_when_to_come_back() -> None:
    simulation = Simulation(num_pages=100, max_running=1)
    simulation.submit(0, 30, max_tokens=200)
    for _ in range(20):
        simulation.step()
    simulation.submit(1, 30, first_token_in_s=0.2)
    simulation.submit(2, 30)
    due_s = simulation.now_s + 0.2
    while 1 in simulation.live:
        simulation.step()
    error = simulation.failed[1]
    assert isinstance(error, HopelessError)
    assert error.reason == "DEADLINE_HOPELESS" and error.retry_after_s
    assert error.metadata["waited_s"]
    # Two chunks of prefill before the objective, not at it.
    assert due_s - 0.06 < simulation.ended_s[1] < due_s - 0.01
    simulation.run()
    assert set(simulation.tokens) == {0, 2}


def test_what_became_hopeless_as_the_machine_slowed_down_is_not_started() -> None:
    simulation = Simulation(num_pages=200, max_running=1, max_batch_tokens=64)
    for handle in range(5):
        simulation.submit(handle, 60, max_tokens=2)
        simulation.run()
    simulation.submit(10, 60, max_tokens=2)
    simulation.step()
    # When its turn comes 35 ms are left: enough for the 22 ms that its prefill seemed to take when
    # it was queued, not for the 50 ms that it is known to take since.
    simulation.submit(11, 60, max_tokens=1)
    simulation.submit(12, 60, first_token_in_s=0.36)
    simulation.slowness = 10.0
    simulation.run()
    assert isinstance(simulation.failed[12], HopelessError)
    assert 12 not in simulation.started_s


def test_a_load_that_lasts_too_long_is_foreseen() -> None:
    simulation = Simulation(load_s=1.0)
    simulation.submit(0, adapter="a")
    simulation.run()
    simulation.submit(1, adapter="b", first_token_in_s=0.5)
    simulation.submit(2, adapter="b", first_token_in_s=2.0)
    simulation.submit(3, adapter="a", first_token_in_s=0.5)  # it is here
    simulation.step()
    assert isinstance(simulation.failed[1], HopelessError)
    simulation.run()
    assert set(simulation.tokens) == {0, 2, 3}


def test_who_lives_on_when_it_was_due_is_watched_until_its_end() -> None:
    simulation = Simulation(load_s=2.0)
    simulation.submit(0, adapter="a")
    simulation.run()  # a load takes two seconds
    came_s = simulation.now_s
    simulation.loader.hold = True
    simulation.submit(1, adapter="b", first_token_in_s=3.0)
    for after_s in (1.2, 2.5):  # it was to begin within a second, but its load has gone on
        simulation.now_s = came_s + after_s
        simulation.step()
        assert 1 in simulation.live
    simulation.now_s = came_s + 3.1
    simulation.step()
    assert isinstance(simulation.failed[1], HopelessError)


def test_under_overload_the_newest_objective_is_served_first() -> None:
    simulation = Simulation(num_pages=400, max_running=1)
    for handle in range(30):
        simulation.submit(handle, 8, max_tokens=20, first_token_in_s=0.7)
        for _ in range(3):
            simulation.step()
    simulation.run()
    first_failure_s = min(simulation.ended_s[handle] for handle in simulation.failed)
    late = [h for h in simulation.order if simulation.started_s[h] > first_failure_s]
    assert any(b < a for a, b in itertools.pairwise(late))


def test_overload_by_others_does_not_cost_a_request_without_objective_its_place() -> None:
    simulation = Simulation(num_pages=400, max_running=1)
    for handle in range(60):
        simulation.submit(handle, 8, max_tokens=20, first_token_in_s=0.7)
        if handle == 30:
            assert simulation.failed  # there is overload, and it goes on
            simulation.submit(100, 8, max_tokens=20)
            came_s = simulation.now_s
        for _ in range(3):
            simulation.step()
    # By then all older requests have started or failed, and one may be running.
    assert simulation.started_s[100] - came_s < 0.7 + 0.3


def test_without_overload_it_is_first_come_first_served() -> None:
    simulation = Simulation(num_pages=400, max_running=1)
    for handle in range(10):
        simulation.submit(handle, 8, first_token_in_s=60.0)
    simulation.run()
    assert simulation.order == list(range(10))


def test_running_work_never_waits_for_a_load() -> None:
    simulation = Simulation(num_pages=100, max_running=4)
    simulation.loader.hold = True
    simulation.submit(0, 4, max_tokens=50)
    simulation.step()
    for handle in range(1, 10):
        simulation.submit(handle, 4, adapter=f"cold{handle}")
    for _ in range(49):
        assert simulation.step() == [0]
    assert simulation.scheduler.is_waiting_for_loads
    simulation.loader.hold = False
    simulation.run()
    assert len(simulation.tokens) == 10


def test_waiting_in_the_queue_is_not_told_as_waiting_for_the_adapter() -> None:
    simulation = Simulation(num_pages=100, max_running=1, load_s=0.05)
    simulation.submit(0, adapter="a")
    simulation.run()
    simulation.submit(1, 4, max_tokens=40)
    simulation.step()
    simulation.submit(2, adapter="a")  # it is here
    simulation.submit(3, adapter="b")
    resident, loading = simulation.live[2], simulation.live[3]
    simulation.run()
    assert resident.timings().queue_s > 0.3 and resident.timings().adapter_load_s == 0.0
    assert loading.timings().queue_s > 0.3 and 0.05 <= loading.timings().adapter_load_s < 0.1


def test_the_oldest_of_the_preempted_gets_on() -> None:
    """Every sequence alone nearly fills the pool: each finishes, and none twice as late."""
    simulation = Simulation(num_pages=20, max_running=4, max_batch_tokens=64)
    for handle in range(6):
        simulation.submit(handle, 20, max_tokens=56)
    simulation.run()
    assert simulation.scheduler.counters.num_preemptions > 0
    ends = [simulation.ended_s[handle] for handle in range(6)]
    assert ends == sorted(ends)


def test_an_unparked_preempted_sequence_resumes_after_its_adapter_came_back() -> None:
    simulation = Simulation(num_pages=30, max_running=4, adapter_pages={"a": 4, "b": 4})
    for handle in range(6):
        simulation.submit(handle, 12, max_tokens=40, adapter="ab"[handle % 2])
    for _ in range(2000):
        if not simulation.scheduler.has_work:
            break
        simulation.step()
        for resident in list(simulation.supply.resident):
            if not resident.users:  # evicted whenever it can be
                resident.reclaim()
    assert simulation.scheduler.counters.num_preemptions > 0
    assert all(len(simulation.tokens[handle]) == 40 for handle in range(6))


@pytest.mark.parametrize(
    "module",
    ["engine.scheduler", "engine.waiting", "engine.fairness", "engine.objectives", "cost_model"],
)
def test_policies_need_no_torch(module: str) -> None:
    code = f"import sys, dataplane.{module}; sys.exit('torch' in sys.modules)"
    path = ":".join(each for each in sys.path if each)
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path})
