"""Who comes next among tenants, adapters and priorities: real code, simulated time, no model."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.scheduling import STEP_S, Simulation


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=2, max_size=2, unique=True
    ),
    flood=st.integers(1, 10),
)
def test_tenants_that_wait_are_served_alike(sizes: list[tuple[int, int]], flood: int) -> None:
    """VTC's bound, though one tenant sends `flood` times the requests, of another size."""
    simulation = Simulation(num_pages=200, max_running=4, max_batch_tokens=32, prefix_cache=False)
    handle = 0
    for tenant, (prompt, max_tokens), count in (
        ("x", sizes[0], 12 * flood),
        ("y", sizes[1], 12),
    ):
        for _ in range(count):
            simulation.submit(handle, prompt, max_tokens=max_tokens, tenant=tenant)
            handle += 1
    largest = max(prompt + 2 * max_tokens for prompt, max_tokens in sizes)
    bound = simulation.max_running * largest
    while {each.tenant for each in simulation.scheduler._waiting} == {"x", "y"}:
        simulation.step()
        service = {t: p + 2 * o for t, (p, o) in simulation.served.items()}
        assert abs(service.get("x", 0) - service.get("y", 0)) <= bound
    simulation.run()


def test_a_newcomer_does_not_wait_behind_a_flood_nor_save_up_service() -> None:
    simulation = Simulation(num_pages=200, max_running=2)
    for handle in range(100):
        simulation.submit(handle, 8, max_tokens=8, tenant="flood")
    for _ in range(200):
        simulation.step()
    for handle in range(100, 140):
        simulation.submit(handle, 8, max_tokens=8, tenant="late")
    done = len(simulation.order)
    simulation.run()
    after = simulation.order[done:]
    assert after.index(100) <= 2
    # From then on they take turns: "late" was away and gets nothing for that.
    turns = [sum(h < 100 for h in after[:n]) for n in (10, 20, 30, 40)]
    assert all(abs(turn - n / 2) <= 3 for turn, n in zip(turns, (10, 20, 30, 40), strict=True))


def test_a_rare_adapter_takes_turns_with_a_popular_one() -> None:
    simulation = Simulation(num_pages=100, max_running=2, max_cluster_delay_s=0.1)
    for handle in range(60):
        simulation.submit(handle, 8, max_tokens=8, adapter="popular")
    for handle in range(60, 65):
        simulation.submit(handle, 8, max_tokens=8, adapter="rare")
    simulation.run()
    ranks = [simulation.order.index(handle) for handle in range(60, 65)]
    assert max(ranks) < 25  # in order of arrival they would be the last


def test_clustering_prefers_the_running_adapter_for_no_longer_than_its_bound() -> None:
    delay_s = 0.3

    def starts(
        max_cluster_delay_s: float, objective_s: float | None = None
    ) -> tuple[Simulation, list[str]]:
        # Room for one adapter besides the sequences: going from one to the other is a reload.
        simulation = Simulation(
            num_pages=30,
            max_running=2,
            max_cluster_delay_s=max_cluster_delay_s,
            adapter_pages={"a": 12, "b": 12},
        )
        for handle in range(40):
            simulation.submit(
                handle, 8, max_tokens=8, adapter="ab"[handle % 2], first_token_in_s=objective_s
            )
        simulation.run()
        return simulation, ["ab"[handle % 2] for handle in simulation.order]

    def switches(names: list[str]) -> int:
        return sum(a != b for a, b in itertools.pairwise(names))

    clustered, with_delay = starts(delay_s)
    _, without = starts(0.0)
    assert switches(with_delay) < switches(without) / 1.5
    # Nobody is passed over by a request of the other adapter for longer than the bound, plus
    # the time that those in the batch need to make room.
    first_b = min(at for h, at in clustered.started_s.items() if h % 2)
    longest_run_s = 10 * (STEP_S + 0.01)
    assert first_b - 100.0 <= delay_s + 2 * longest_run_s

    # Who can wait for the first token can be passed over in turn, unless nobody is to be.
    _, with_time = starts(delay_s, 20.0)
    assert switches(with_time) < switches(with_delay)
    _, in_a_hurry = starts(10.0, 8 * delay_s)
    assert switches(in_a_hurry) > switches(starts(10.0)[1])
    assert switches(starts(0.0, 20.0)[1]) == switches(without)


def test_higher_priority_first_and_lower_after_its_time() -> None:
    simulation = Simulation(num_pages=100, max_running=1, priority_ageing_s=1.0)
    simulation.submit(0, 4, max_tokens=4)
    simulation.submit(1, 4, max_tokens=4, priority=-2)
    simulation.submit(2, 4, max_tokens=4, priority=1)
    simulation.submit(3, 4, max_tokens=4)
    simulation.run()
    assert simulation.order == [2, 0, 3, 1]


def test_low_priority_does_not_starve_behind_an_endless_stream() -> None:
    simulation = Simulation(num_pages=100, max_running=1, priority_ageing_s=0.5)
    simulation.submit(0, 4, max_tokens=4, priority=0)
    handle = 1
    while 0 in simulation.live:
        if simulation.scheduler.num_waiting < 4:
            simulation.submit(handle, 4, max_tokens=4, priority=2)
            handle += 1
        simulation.step()
        assert simulation.now_s < 110.0
    assert 1.0 < simulation.started_s[0] - 100.0 < 1.5  # two levels, then its turn


def test_lifted_requests_are_equals_again_when_the_higher_are_gone() -> None:
    simulation = Simulation(num_pages=100, max_running=1, priority_ageing_s=0.2)
    for handle in range(40):
        simulation.submit(handle, 4, max_tokens=8, tenant="flood")
    simulation.submit(50, 4, max_tokens=60, priority=3, tenant="high")
    simulation.submit(51, 4, max_tokens=60, priority=3, tenant="high")
    while 51 not in simulation.started_s:
        simulation.step()
    simulation.submit(60, 4, max_tokens=8, tenant="light")
    simulation.run()
    assert simulation.order.index(60) - simulation.order.index(51) <= 2
