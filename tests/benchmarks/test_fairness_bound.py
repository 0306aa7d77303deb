"""The bound that benchmarks.oversubscribed checks, against the real scheduler in simulated time."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.oversubscribed import fairness, requests_ahead
from dataplane.engine.sequence import Sequence
from tests.helpers.scheduling import Simulation

DELAY_S = 0.05


def closed_loop(
    *, num_adapters: int, concurrency: int, num_pages: int, num_requests: int
) -> tuple[Simulation, dict[int, Sequence]]:
    """Round-robin over the adapters, so many requests at any time; all that there were."""
    simulation = Simulation(
        num_pages=num_pages,
        max_running=concurrency,
        max_batch_tokens=4 * concurrency,
        max_cluster_delay_s=DELAY_S,
        load_s=0.02,
        adapter_pages={f"a{index}": 4 + 2 * (index % 4) for index in range(num_adapters)},
    )
    sequences: dict[int, Sequence] = {}
    asked = 0
    while asked < num_requests or simulation.scheduler.has_work:
        while asked < num_requests and len(simulation.live) < concurrency:
            simulation.submit(asked, 12, max_tokens=8, adapter=f"a{asked % num_adapters}")
            sequences[asked] = simulation.live[asked]
            asked += 1
        if simulation.scheduler.is_waiting_for_loads and simulation.loader.next_s is not None:
            simulation.now_s = max(simulation.now_s, simulation.loader.next_s)
        simulation.step()
    return simulation, sequences


@pytest.mark.parametrize(
    ("num_adapters", "concurrency", "num_pages"),
    [(16, 8, 40), (3, 8, 40), (5, 12, 60)],
)
def test_nobody_waits_for_more_requests_than_the_bound_says(
    num_adapters: int, concurrency: int, num_pages: int
) -> None:
    simulation, sequences = closed_loop(
        num_adapters=num_adapters, concurrency=concurrency, num_pages=num_pages, num_requests=150
    )
    starts = sorted(simulation.started_s.values())
    most = 0
    for handle, sequence in sequences.items():
        assert sequence.adapter_ready_s is not None
        # What clustering prefers comes within the delay; after it only those ahead by right.
        from_s = sequence.adapter_ready_s + DELAY_S
        most = max(most, sum(from_s < at < simulation.started_s[handle] for at in starts))
    assert 0 < most <= requests_ahead(num_adapters, concurrency)


def phase(waits: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "name": "over",
        "summary": {"requests_per_s": 10.0},
        "requests": [
            {"adapter": f"a{index}", "queue_s": queue_s, "adapter_load_s": load_s}
            for index, (queue_s, load_s) in enumerate(waits)
        ],
    }


def test_a_wait_beyond_the_bound_is_told() -> None:
    # 1 beside it and 3 other adapters, one request each: 4 ahead at 10 a second.
    line = fairness(phase([(0.1, 0.0), (0.64, 0.0)]), 4, 2)
    assert line["bound_s"] == pytest.approx(0.25 + 0.4)
    assert line["held"] and line["longest_wait_s"] == 0.64
    assert not fairness(phase([(0.66, 0.0)]), 4, 2)["held"]
    assert fairness(phase([(0.66, 0.5)]), 4, 2)["held"]  # most of it waiting for the load
