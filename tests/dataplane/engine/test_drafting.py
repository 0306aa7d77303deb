"""How many drafts a step takes along: as many as pay for themselves, at nobody else's cost."""

from __future__ import annotations

import random

import pytest

from dataplane.cost_model import CostModel
from dataplane.engine import drafting
from dataplane.engine.chunk import Chunk
from dataplane.engine.drafting import worth
from tests.helpers.scheduling import Simulation

SURE = [0.97**at for at in range(1, 5)]
STEP_S, ROW_S = 0.01, 0.0005


def measured(draft_s: float = ROW_S, fixed_s: float = 0.0) -> CostModel:
    costs = CostModel()
    for _ in range(3):
        for number in (1, 4, 16, 64):
            costs.observe_step(STEP_S + ROW_S * number, num_prefill=0, num_decode=number)
            costs.observe_step(
                STEP_S + ROW_S * number + fixed_s + draft_s * number,
                num_prefill=0,
                num_decode=number,
                num_drafts=number,
            )
    return costs


def test_what_drafts_cost_is_measured_beside_the_step() -> None:
    costs = measured(draft_s=0.001, fixed_s=0.002)
    assert costs.drafts_s(8) == pytest.approx(0.01)
    assert costs.draft_line == (pytest.approx(0.002), pytest.approx(0.001))
    assert costs.step_s(4) == pytest.approx(STEP_S + 4 * ROW_S)
    costs.observe_step(
        STEP_S + ROW_S + 0.002 + 0.004 + 0.05, num_prefill=100, num_decode=1, num_drafts=4
    )
    assert costs.prefill_s(100, 100) == pytest.approx(0.05)
    assert costs.gain == 1.0
    costs.observe_gain(2 * costs.step_s(4), num_tokens=20, num_decode=4)
    assert costs.gain == pytest.approx(2.5)


def test_nothing_is_drafted_before_a_step_was_measured_and_once_to_measure_drafts() -> None:
    assert worth([SURE], 1, CostModel()) == [0]
    costs = CostModel()
    costs.observe_step(0.01, num_prefill=0, num_decode=1)
    assert worth([SURE], 1, costs) == [4]


def test_who_is_alone_drafts_as_far_as_chances_pay_for_rows() -> None:
    assert worth([SURE], 1, measured()) == [4]
    assert worth([[0.9, 0.5, 0.1, 0.04]], 1, measured()) == [3]
    assert worth([[0.3]], 1, measured(draft_s=0.005)) == [0]
    assert worth([[]], 1, measured()) == [0]
    assert worth([SURE], 1, measured(fixed_s=1.0)) == [0]


def test_a_busy_batch_drafts_less() -> None:
    costs = measured(draft_s=0.001)
    totals = [sum(worth([SURE] * number, number, costs)) / number for number in (1, 4, 16, 64)]
    assert totals[0] == 4.0 and totals == sorted(totals, reverse=True) and totals[-1] < 2.0


def test_who_does_not_draft_is_not_slowed_down() -> None:
    costs = measured()
    for num_decode in (2, 3, 4, 8, 16, 32):
        for num_candidates in range(1, num_decode):
            counts = worth([SURE] * num_candidates, num_decode, costs)
            if not any(counts):
                continue
            num_beside = num_decode - sum(map(bool, counts))
            both_s = costs.step_s(num_decode) + costs.drafts_s(sum(counts))
            both_s += costs.step_s(num_beside)
            assert both_s <= 1.031 * 2 * costs.step_s(num_decode)
    # Three rows more pay for one row less in the step that follows, and 3% of both steps.
    assert worth([SURE, [0.1]], 8, measured()) == [2, 0]


def test_those_who_are_likely_draft_where_all_together_are_not_worth_it() -> None:
    costs = measured(draft_s=0.002)
    counts = worth([[0.2], SURE, [0.25], SURE], 4, costs)
    assert counts[0] == counts[2] == 0


def rate(simulation: Simulation, num_streams: int, prompt: int = 8) -> float:
    """Tokens a second of simulated time."""
    started_s = simulation.now_s
    for handle in range(num_streams):
        simulation.submit(handle, prompt, max_tokens=120)
    simulation.run()
    assert sum(map(len, simulation.tokens.values())) == 120 * num_streams
    return 120 * num_streams / (simulation.now_s - started_s)


@pytest.mark.parametrize("num_streams", [1, 4, 16])
def test_text_that_repeats_gains_and_other_text_loses_nothing(num_streams: int) -> None:
    def simulated(max_drafts: int, period: int) -> Simulation:
        return Simulation(
            num_pages=1000,
            max_running=16,
            max_batch_tokens=64,
            max_drafts=max_drafts,
            period=period,
        )

    for period, least in ((0, 0.97), (23, 1.3)):
        plain, drafted = simulated(0, period), simulated(4, period)
        ratio = rate(drafted, num_streams) / rate(plain, num_streams)
        assert drafted.tokens == plain.tokens
        assert ratio >= least, (period, ratio)
        assert (drafted.scheduler.counters.num_accepted > 0) is (period > 0)
        assert drafted.served == plain.served


def test_pairs_that_come_again_by_chance_are_not_followed_for_long() -> None:
    simulation = Simulation(num_pages=1000, max_drafts=4, draft_s=0.002)
    dice = random.Random(1)
    simulation._said = lambda chunk: [  # pyright: ignore[reportAttributeAccessIssue]
        dice.randrange(8) for _ in range(1 + len(chunk.drafts))
    ]
    rate(simulation, 1)
    assert simulation.scheduler.counters.num_drafted < 30


def test_drafts_take_no_page_that_others_grow_into_and_no_more_tokens_than_a_step_has() -> None:
    for num_pages in (9, 10, 60):
        preemptions: list[int] = []
        for max_drafts in (0, 8):
            simulation = Simulation(
                num_pages=num_pages, max_batch_tokens=7, max_drafts=max_drafts, period=3
            )
            for handle in range(3):
                simulation.submit(handle, 4, max_tokens=16)
            simulation.run()
            assert all(len(tokens) == 16 for tokens in simulation.tokens.values())
            preemptions.append(simulation.scheduler.counters.num_preemptions)
        assert preemptions[1] <= preemptions[0]
        assert simulation.scheduler.counters.num_accepted > 0


def test_as_many_pages_are_left_as_sequences_run() -> None:
    simulation = Simulation(num_pages=20, page_tokens=4, max_drafts=8)
    simulation.submit(0, 6, max_tokens=20)
    simulation.step()
    (sequence,) = simulation.scheduler.running
    drafting, available = simulation.scheduler._drafting, simulation.pool.num_available
    assert drafting is not None and len(sequence.block_table) == 2
    chunk = Chunk(sequence, 6, 1, samples=True)
    assert drafting._with_pages(chunk, 8, available) == 1  # to the end of its last page
    assert drafting._with_pages(chunk, 8, available - 1) == 5
    assert drafting._with_pages(chunk, 4, 0) == 4 and len(sequence.block_table) == 3
    simulation.run()


def test_tenants_are_charged_for_what_was_generated() -> None:
    simulation = Simulation(num_pages=1000, max_drafts=4, period=5)
    simulation.submit(0, 4, max_tokens=100, tenant="t")
    simulation.run()
    assert simulation.scheduler._waiting.tenants.served("t") == 4 + 2 * 100


def test_a_step_with_prompts_takes_no_drafts() -> None:
    simulation = Simulation(num_pages=1000, max_batch_tokens=16, max_drafts=4, period=5)
    simulation.submit(0, 4, max_tokens=200)
    for _ in range(40):
        simulation.step()
    counters = simulation.scheduler.counters
    assert counters.num_drafted > 20
    simulation.submit(1, 100, max_tokens=20)
    before = counters.num_drafted
    while not simulation.tokens.get(1):
        simulation.step()
    assert counters.num_drafted == before
    simulation.run()
    assert counters.num_drafted > before


def test_costs_that_spoke_against_drafts_are_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drafting, "_TRY_AFTER", 20)
    simulation = Simulation(num_pages=1000, max_drafts=4, period=5, draft_s=1.0)
    simulation.submit(0, 4, max_tokens=1900)
    for _ in range(150):
        simulation.step()
    few = simulation.scheduler.counters.num_drafted
    assert 4 <= few <= 4 * 10
    simulation.draft_s = 0.0
    for _ in range(50):
        simulation.step()
    assert simulation.scheduler.counters.num_drafted > few + 4 * 20
