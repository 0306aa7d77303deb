"""Admission keeps the pages free that running answers will grow into."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.channel import Sampling
from dataplane.engine.growth import Growth
from dataplane.engine.sequence import Sequence
from tests.helpers.scheduling import Simulation

PAGE_TOKENS = 4


def sequence(prompt: int, output: int, max_tokens: int) -> Sequence:
    return Sequence(
        handle=0,
        tokens=[1] * (prompt + output),
        num_prompt=prompt,
        sampling=Sampling(max_tokens=max_tokens),
        adapter=None,
        tenant="t",
        arrival_s=0.0,
        deadline_s=None,
        block_table=[0] * -(-(prompt + output) // PAGE_TOKENS),
    )


def experienced(share: float) -> Growth:
    growth = Growth(PAGE_TOKENS)
    for _ in range(1000):
        growth.ended(sequence(4, round(100 * share), 100))
    return growth


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(0, 40), st.integers(1, 60)),
        min_size=1,
        max_size=12,
    )
)
def test_as_many_pages_as_step_by_step(shapes: list[tuple[int, int, int]]) -> None:
    running = [sequence(prompt, min(done, most), most) for prompt, done, most in shapes]
    at_once = []
    for step in range(61):
        alive = [
            each.num_prompt + each.num_output + step
            for each in running
            if each.sampling.max_tokens - each.num_output >= step
        ]
        at_once.append(sum(-(-tokens // PAGE_TOKENS) for tokens in alive))
    expected = max(at_once) - at_once[0]
    assert 0 <= experienced(1.0).pages(running) - expected <= len(running)


def test_the_expectation_follows_what_answers_came_to() -> None:
    running = [sequence(8, 0, 400) for _ in range(4)]
    whole, tenth = experienced(1.0).pages(running), experienced(0.1).pages(running)
    assert 400 <= whole <= 404 and 40 <= tenth <= 44
    assert Growth(PAGE_TOKENS).pages(running) == 0  # nothing was seen yet
    assert experienced(0.1).pages([sequence(8, 300, 400)]) == 0  # longer than most
    running[0].block_table = []  # not yet begun: its prompt's pages are wanted besides
    assert experienced(1.0).pages(running) == whole + 2


def preemptions(simulation: Simulation) -> int:
    return simulation.scheduler.counters.num_preemptions


@pytest.mark.parametrize("num_pages", [40, 64])
def test_running_work_is_seldom_thrown_away_once_lengths_are_known(num_pages: int) -> None:
    simulation = Simulation(num_pages=num_pages, max_running=16, max_batch_tokens=64)
    for handle in range(80):
        simulation.submit(handle, 8, max_tokens=60)  # 17 pages each
    simulation.run()
    learning = preemptions(simulation)
    for handle in range(80, 160):
        simulation.submit(handle, 8, max_tokens=60)
    simulation.run()
    assert preemptions(simulation) - learning <= 8  # of 80
    assert len(simulation.tokens) == 160


def test_a_lone_request_is_never_kept_waiting_for_its_growth() -> None:
    simulation = Simulation(num_pages=18, max_running=16, max_batch_tokens=64)
    for handle in range(30):
        simulation.submit(handle, 8, max_tokens=60)
        simulation.run()
    simulation.submit(100, 10, max_tokens=60)  # all pages of the pool, alone
    simulation.step()
    assert 100 in simulation.started_s
    simulation.run()
    assert len(simulation.tokens[100]) == 60
