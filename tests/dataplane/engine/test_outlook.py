"""What the engine foretells, and what then comes."""

from __future__ import annotations

import random
import statistics

import pytest

from dataplane.load_reports import Outlook
from tests.helpers.scheduling import PREFILL_S, Simulation


def outlook_of(simulation: Simulation) -> Outlook:
    """The present one, whatever was told a moment ago."""
    outlook = simulation.scheduler._outlooks.now(simulation.scheduler.running, simulation.now_s)
    assert outlook is not None
    return outlook


def expected_s(simulation: Simulation, num_tokens: int) -> float:
    """Until the first token of a request that comes now."""
    outlook = outlook_of(simulation)
    wait_s = outlook.waits[-1].wait_s if outlook.waits else outlook.behind_running_s
    num_steps = -(-num_tokens // outlook.max_batch_tokens)
    step_s = outlook.prefill_step_s
    step_s += outlook.decode_step_s if simulation.scheduler.running else 0.0
    return wait_s + num_steps * step_s + num_tokens * outlook.prefill_token_s


def warmed_up(**options: int) -> Simulation:
    simulation = Simulation(max_running=8, max_batch_tokens=128, page_tokens=16, **options)
    for handle in range(1000, 1024):
        simulation.submit(handle, 20 + handle % 100, max_tokens=60)
    simulation.run()
    return simulation


def test_unknown_before_steps_were_measured() -> None:
    simulation = Simulation()
    assert simulation.scheduler.outlook(simulation.now_s) is None


def test_an_idle_engine_has_all_places_open() -> None:
    outlook = outlook_of(warmed_up(num_pages=1000))
    assert (outlook.behind_running_s, outlook.waits, outlook.num_open) == (0.0, [], 8)
    assert outlook.prefill_token_s == pytest.approx(PREFILL_S, rel=0.1)
    assert outlook.request_s > outlook.request_prefill_s > 0


@pytest.mark.parametrize("num_pages", [1000, 60])
def test_foretold_first_tokens_come_true(num_pages: int) -> None:
    """Places are scarce in one case, pages in the other."""
    simulation = warmed_up(num_pages=num_pages)
    generator = random.Random(num_pages)
    foretold: dict[int, tuple[float, float]] = {}
    ratios: list[float] = []
    for handle in range(150):
        num_tokens = generator.randrange(8, 200)
        foretold[handle] = simulation.now_s, expected_s(simulation, num_tokens)
        simulation.submit(handle, num_tokens, max_tokens=generator.randrange(8, 100))
        for _ in range(generator.randrange(4, 12)):
            before = set(simulation.tokens)
            if simulation.scheduler.has_work:
                simulation.step()
            ratios += _ratios(simulation, foretold, before)
    while simulation.scheduler.has_work:
        before = set(simulation.tokens)
        simulation.step()
        ratios += _ratios(simulation, foretold, before)
    assert len(ratios) == 150
    deciles = statistics.quantiles(ratios, n=10)
    print(
        f"expected to true: p10 {deciles[0]:.2f}, median {statistics.median(ratios):.2f},"
        f" p90 {deciles[8]:.2f}"
    )
    assert 0.85 <= statistics.median(ratios) <= 1.15
    assert deciles[0] >= 0.5 and deciles[8] <= 1.5


def _ratios(
    simulation: Simulation, foretold: dict[int, tuple[float, float]], before: set[int]
) -> list[float]:
    """Of the requests whose first token has come since `before`."""
    first = [handle for handle in set(simulation.tokens) - before if handle in foretold]
    return [foretold[each][1] / (simulation.now_s - foretold[each][0]) for each in first]


def test_higher_priorities_have_a_wait_of_their_own() -> None:
    simulation = warmed_up(num_pages=1000)
    for handle in range(8):
        simulation.submit(handle, 40, max_tokens=100)
    while simulation.scheduler.num_waiting:
        simulation.step()
    for handle in range(8, 24):
        simulation.submit(handle, 40, max_tokens=100, priority=2 if handle < 16 else 0)
    waits = outlook_of(simulation).waits
    assert [each.priority for each in waits] == [2, 0]
    assert 0 < outlook_of(simulation).behind_running_s < waits[0].wait_s < waits[1].wait_s


def test_what_getting_an_adapter_takes_is_told_by_tier() -> None:
    simulation = warmed_up(num_pages=1000, load_s=0.3)
    assert outlook_of(simulation).tier_costs == []
    simulation.submit(1, 10, adapter="a")
    while simulation.scheduler.has_work:
        if simulation.scheduler.is_waiting_for_loads and simulation.loader.next_s:
            simulation.now_s = max(simulation.now_s, simulation.loader.next_s)
        simulation.step()
    (cost,) = outlook_of(simulation).tier_costs
    assert cost.tier == "source" and cost.fixed_s == pytest.approx(0.3, abs=0.05)


def test_it_is_worked_out_a_few_times_a_second() -> None:
    simulation = warmed_up(num_pages=1000)
    first = simulation.scheduler.outlook(simulation.now_s)
    assert simulation.scheduler.outlook(simulation.now_s + 0.4) is first
    assert simulation.scheduler.outlook(simulation.now_s + 0.6) is not first
